"""Finding and loading tokenizers, their ids against the goldens', and which ids end a text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.utils._paths import filter_repo_objects
from tokenizers import Tokenizer as Backend

from ostinato.engine.errors import CheckpointError, RequestError, TokenizerError
from ostinato.engine.text.hf_tokenizer import HfTokenizer
from ostinato.engine.text.tokenizer import find_tokenizer, load_tokenizer, resolve_eos
from ostinato.engine.text.world_tokenizer import WorldTokenizer
from tests.engine.text.tokenizer_samples import BYTE_LEVEL, GOLDENS, WORLD_VOCABULARY, copy, edit, golden_json


def json_of(name: str, file: str) -> dict[str, Any]:
    path = GOLDENS / name / file
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    assert isinstance(content, dict)
    return content


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_golden_samples(name: str) -> None:
    tokenizer = load_tokenizer(GOLDENS / name)
    for sample in golden_json(name)["tokenizer"]:
        assert tokenizer.encode(sample["text"]) == sample["ids"]
        assert tokenizer.encode(sample["text"], add_special_tokens=False) == sample["ids_no_special"]
        assert tokenizer.decode(sample["ids"]) == sample["text"]


def test_what_a_tokenizer_says_of_itself() -> None:
    gla, mamba = load_tokenizer(GOLDENS / "gla"), load_tokenizer(GOLDENS / "mamba_hf")
    assert (gla.bos_token_id, gla.eos_token_id, gla.vocab_size, gla.chat_template) == (1, 2, 263, None)
    assert (mamba.bos_token_id, mamba.eos_token_id, mamba.vocab_size) == (0, 0, 285)
    assert (gla.token_bytes(2), gla.piece(2), gla.token_text(9999)) == (b"</s>", b"", "")
    assert gla.decode([1, 42, 2], skip_special_tokens=False) == "<s>H</s>"


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (GOLDENS / "gla", HfTokenizer),
        (str(GOLDENS / "gla" / "tokenizer.json"), HfTokenizer),
        (GOLDENS / "rwkv7_fla", WorldTokenizer),
        (str(WORLD_VOCABULARY), WorldTokenizer),
    ],
)
def test_paths_that_load(path: Path | str, kind: type) -> None:
    assert isinstance(load_tokenizer(path), kind)


def test_a_file_takes_its_special_tokens_from_beside_it() -> None:
    assert load_tokenizer(GOLDENS / "gla" / "tokenizer.json").eos_token_id == 2


def test_a_folder_without_tokenizer_files_has_none(tmp_path: Path) -> None:
    assert find_tokenizer(GOLDENS / "mamba_orig") is None
    with pytest.raises(TokenizerError, match=r"no tokenizer there; tokenizer\.json, rwkv_vocab"):
        load_tokenizer(tmp_path)


BAD_JSON = {
    "truncated": '{"version": "1.0", "model": {"type": "BPE"',
    "empty": "",
    "list": "[]",
    "no model": '{"version": "1.0"}',
    "not utf-8": b"\xff\xfe",
}


@pytest.mark.parametrize("content", BAD_JSON.values(), ids=BAD_JSON)
@pytest.mark.parametrize("load", [load_tokenizer, find_tokenizer])
def test_a_damaged_tokenizer_json_is_named(
    tmp_path: Path, content: str | bytes, load: Callable[[Path], object]
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: not a tokenizer"):
        load(tmp_path)


def test_code_from_a_repository_is_never_needed_where_a_vocabulary_is_there() -> None:
    assert "auto_map" in json_of("rwkv7_fla", "tokenizer_config.json")
    assert find_tokenizer(GOLDENS / "rwkv7_fla") is not None


def test_code_from_a_repository_is_never_run(tmp_path: Path) -> None:
    copy("rwkv7_fla", tmp_path, "tokenizer_config.json")
    (tmp_path / "hf_rwkv_tokenizer.py").write_text("raise SystemExit('was run')", encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json: .*never run.*--tokenizer"):
        find_tokenizer(tmp_path)


def test_a_configuration_without_vocabulary_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"no vocabulary beside it, such as tokenizer\.json; .*--tokenizer"):
        find_tokenizer(copy("gla", tmp_path, "tokenizer_config.json"))


def test_two_world_vocabularies_need_a_choice(tmp_path: Path) -> None:
    for name in ("rwkv_vocab_a.txt", "rwkv_vocab_b.txt"):
        (tmp_path / name).write_text("1 'a' 1\n", encoding="utf-8")
    with pytest.raises(TokenizerError, match=r"rwkv_vocab_a\.txt, rwkv_vocab_b\.txt.*--tokenizer"):
        find_tokenizer(tmp_path)
    assert load_tokenizer(tmp_path / "rwkv_vocab_b.txt").encode("a") == [1]


@pytest.mark.parametrize("path", ["./gone", "/gone/away", "gone/tokenizer.json", "a/b/c", ""])
def test_a_missing_path_is_named(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if not path:
        path = str(copy("mamba_orig", tmp_path, "pytorch_model.bin") / "pytorch_model.bin")
    with pytest.raises(TokenizerError, match=path):
        load_tokenizer(path)


def test_truncation_and_padding_of_the_file_are_off(tmp_path: Path) -> None:
    backend = Backend.from_file(str(GOLDENS / "gla" / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=16)
    backend.save(str(tmp_path / "tokenizer.json"))
    sample = golden_json("gla")["tokenizer"][1]
    assert load_tokenizer(tmp_path).encode(sample["text"]) == sample["ids"]
    assert load_tokenizer(tmp_path).encode("H", add_special_tokens=False) == [42]


def test_half_of_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(RequestError, match="lone surrogate"):
        load_tokenizer(GOLDENS / "gla").encode("a\udc00")


def test_older_vocabulary_files_are_converted(tmp_path: Path) -> None:
    model = json_of("mamba_hf", "tokenizer.json")["model"]
    edit(tmp_path / "vocab.json", lambda c: c.update(model["vocab"], **{"<|endoftext|>": 0}))
    merges = "\n".join(" ".join(merge) for merge in model["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    edit(
        tmp_path / "tokenizer_config.json",
        lambda c: c.update(tokenizer_class="GPT2Tokenizer", eos_token="<|endoftext|>"),
    )
    tokenizer = load_tokenizer(tmp_path)
    for sample in golden_json("mamba_hf")["tokenizer"]:
        assert tokenizer.encode(sample["text"]) == sample["ids"]
    assert tokenizer.eos_token_id == 0


def test_a_vocabulary_that_cannot_be_converted_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\x00not a model")
    edit(tmp_path / "tokenizer_config.json", lambda c: c.update(tokenizer_class="LlamaTokenizer"))
    with pytest.raises(TokenizerError, match=r"tokenizer\.model: transformers cannot load it .*sentencepiece"):
        load_tokenizer(tmp_path)


def test_of_a_hub_repository_only_tokenizer_files_are_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, list[str]]] = []

    def snapshot(repo_id: str, *, allow_patterns: list[str]) -> str:
        asked.append((repo_id, allow_patterns))
        return str(GOLDENS / "gla")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert load_tokenizer("owner/some-model_1.5B").eos_token_id == 2
    files = ["model.safetensors", "tokenizer.json", "rwkv_vocab_v20230424.txt", "modeling_x.py", "README.md"]
    assert [name for name, _ in asked] == ["owner/some-model_1.5B"]
    assert list(filter_repo_objects(files, allow_patterns=asked[0][1])) == files[1:3]


def test_a_hub_that_cannot_be_reached_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(TokenizerError, match=r"owner/no-such-model: .*the hub"):
        load_tokenizer("owner/no-such-model")


GOLDEN_EOS = {
    "gla": {2},
    "mamba_hf": {0},
    "mamba_orig": set(),
    "mamba2_codestral_like": {2},
    "mamba2_hf": {0},
    "rwkv4_hf": {0},
    "rwkv5_hf": {0},
    "rwkv5_pth": {0},
    "rwkv6_fla": {0},
    "rwkv6_hf": {0},
    "rwkv6_pth": {0},
    "rwkv7_fla": {0},
    "rwkv7_pth": {0},
}


@pytest.mark.parametrize(("name", "expected"), GOLDEN_EOS.items())
def test_end_ids_of_the_goldens(name: str, expected: set[int]) -> None:
    configs = json_of(name, "config.json"), json_of(name, "generation_config.json")
    assert resolve_eos(*configs, find_tokenizer(GOLDENS / name)) == expected


def test_the_order_of_end_ids() -> None:
    gla, world = load_tokenizer(GOLDENS / "gla"), load_tokenizer(GOLDENS / "rwkv7_pth")
    assert resolve_eos({"eos_token_id": 7}, {"eos_token_id": [8, 9]}, gla) == {8, 9}
    assert resolve_eos({"eos_token_id": 7}, {"eos_token_id": None}, gla) == {7}
    assert resolve_eos({}, {"eos_token_id": []}, gla) == {2}
    assert resolve_eos({}, {}, None) == set()
    assert resolve_eos({"eos_token_id": 2}, {"eos_token_id": [0, 257]}, world) == {0, 257}
    assert resolve_eos({"model_type": "rwkv7", "vocab_size": 65536, "eos_token_id": 2}, {}, None) == {0}
    assert resolve_eos({"model_type": "rwkv7", "vocab_size": 50304, "eos_token_id": 2}, {}, None) == {2}


@pytest.mark.parametrize("value", ["2", 2.0, True, -1, [1, None], {"id": 1}])
def test_end_ids_of_the_wrong_type_are_named(value: object) -> None:
    with pytest.raises(CheckpointError, match=r"generation_config\.json: eos_token_id must be"):
        resolve_eos({}, {"eos_token_id": value}, None)
    with pytest.raises(CheckpointError, match=r"^config\.json: eos_token_id must be"):
        resolve_eos({"eos_token_id": value}, {}, None)
