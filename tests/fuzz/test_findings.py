"""What spoilt bytes once did to a parser, one plain test each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import zstandard

from ostinato.engine.config import EngineConfig
from ostinato.engine.errors import RequestError, SnapshotFormatError, StateDamagedError, TokenizerError
from ostinato.engine.loading import load_engine
from ostinato.engine.store.blobs import open_blobs
from ostinato.engine.store.content import load_content, summarize
from ostinato.engine.store.record import content_keys, parse_record, record_json
from ostinato.engine.store.state_store import StateStore, Tier
from ostinato.engine.text.chat_template import ChatTemplate
from ostinato.engine.text.tokenizer import find_tokenizer
from ostinato.models.checkpoint import open_checkpoint
from ostinato.models.errors import CheckpointError
from ostinato.models.fingerprint import weights_fingerprint
from ostinato.models.outline import read_outline
from ostinato.models.weight_files import open_weight_file
from tests.engine.store.samples import Clock, one_tier, put, snapshot
from tests.fuzz import state_files
from tests.fuzz.mutate import write_json
from tests.server.harness import GOLDENS, error_of, real_service, serving

HIGH_DIGITS = "\u00b2"  # a superscript two: a digit to str.isdigit, none to int
PTH = GOLDENS / "rwkv7_pth" / "rwkv7-g1-tiny-ctx4096.pth"


@pytest.mark.asyncio
@pytest.mark.parametrize("header", [f"bytes={HIGH_DIGITS}-", f"bytes=-{HIGH_DIGITS}", f"bytes=0-{HIGH_DIGITS}"])
async def test_a_range_in_superscript_digits_is_no_range(header: str, tmp_path: Path) -> None:
    async with serving(real_service(), state_store=(str(tmp_path),)) as client:
        made = (await client.post("/v1/states", json={"prompt": [1, 2, 3]})).json()
        path = f"/v1/states/{made['id']}/content"
        reply = await client.get(path, headers=httpx.Headers({"range": header}, encoding="latin-1"))
    assert reply.status_code == 200
    assert len(reply.content) == made["bytes"]


@pytest.mark.asyncio
async def test_more_choices_than_can_be_queued_are_refused_before_any_is_made() -> None:
    async with serving(real_service()) as client:
        body = {"prompt": [[1]] * 100_000, "n": 128, "max_tokens": 1}
        for stream in (False, True):
            reply = await client.post("/v1/completions", json={**body, "stream": stream})
            assert reply.status_code == 400
            assert "12800000 sequences" in error_of(reply)["message"]


def header_with(change: Callable[[dict[str, Any]], object], *, private: bool = False) -> bytes:
    """A snapshot file of the GLA checkpoint whose header was changed."""
    format = state_files.state_format()
    data = format.encode(state_files.snapshot(format, private=private))
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    inner = json.loads(header["__metadata__"]["ostinato"])
    change(inner)
    header["__metadata__"]["ostinato"] = write_json(inner)
    text = write_json(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


SPOILT_PARAMS: list[tuple[str, Any]] = [
    ("include_stop", float("nan")),
    ("ignore_eos", 1),
    ("temperature", True),
    ("top_p", "1"),
    ("stop", [7]),
    ("stop_token_ids", [1.5]),
]


@pytest.mark.parametrize(("name", "value"), SPOILT_PARAMS, ids=[name for name, _ in SPOILT_PARAMS])
def test_a_snapshot_with_parameters_of_other_types(name: str, value: Any) -> None:
    data = header_with(lambda inner: inner["params"].update({name: value}))
    with pytest.raises(SnapshotFormatError, match=f"sampling parameters cannot be read.*{name}"):
        state_files.state_format().decode(data)


def test_a_snapshot_with_a_bias_that_is_no_float() -> None:
    data = header_with(lambda inner: inner["params"].update(logit_bias={"1": 10**400}))
    with pytest.raises(SnapshotFormatError, match="sampling parameters"):
        state_files.state_format().decode(data)


@pytest.mark.parametrize("token", ["9" * 5000, "\u0664", "4000000000", "-1", ""])
def test_a_snapshot_that_counts_what_is_no_token(token: str) -> None:
    data = header_with(lambda inner: inner.update(counts={token: 1}), private=True)
    with pytest.raises(SnapshotFormatError, match="counts tokens"):
        state_files.state_format().decode(data)


def without_penalties(inner: dict[str, Any]) -> None:
    inner["params"].update(frequency_penalty=0.0, presence_penalty=0.0)


NEEDLESS = "where it need not"


@pytest.mark.parametrize(
    ("private", "change", "message"),
    [
        (True, without_penalties, NEEDLESS),
        (True, lambda inner: inner.update(counts={"1": 1}, params=None), NEEDLESS),
        (True, lambda inner: inner.update(counts=None), NEEDLESS),
        (True, lambda inner: inner.update(counts={"1": 2**62}), "more tokens than"),
        (False, lambda inner: inner.update(counts={"1": 1}), NEEDLESS),
    ],
    ids=["no-penalties", "no-parameters", "missing", "too-many", "told-by-the-log"],
)
def test_a_snapshot_whose_counts_do_not_fit_its_answer(
    private: bool, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    with pytest.raises(SnapshotFormatError, match=message):
        state_files.state_format().decode(header_with(change, private=private))


SPOILT_FIELDS: list[tuple[str, Any]] = [
    ("created", float("nan")),
    ("used", float("inf")),
    ("expires", -1),
    ("bytes", -5),
    ("tokens", 10**400),
    ("labels", ["\ud800"]),
    ("mark", "\udfff"),
    ("model", "\ud800"),
]


@pytest.mark.parametrize(("name", "value"), SPOILT_FIELDS, ids=[f"{name}" for name, _ in SPOILT_FIELDS])
def test_a_record_that_no_answer_could_show(name: str, value: Any) -> None:
    sample = state_files.record_samples()[0]
    fields = {**json.loads(sample.data), name: value}
    with pytest.raises(ValueError, match=r"out of range|surrogates"):
        parse_record(sample.of, json.dumps(fields).encode())


def test_a_record_that_is_nested_too_deeply() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_record("records/anonymous/a.json", b"[" * 200_000)


@pytest.mark.parametrize(("folder", "id"), [("anonymous", "notes"), ("zz", "st_" + "a" * 64)])
def test_a_stray_record_hides_no_other(folder: str, id: str, tmp_path: Path) -> None:
    blobs = open_blobs(tmp_path)
    store = one_tier(blobs, Clock())
    kept = put(store, snapshot(1), owner="")
    fields = {**json.loads(record_json(kept)), "id": id, "owner": "" if folder == "anonymous" else folder}
    blobs.put(f"records/{folder}/{id}.json", json.dumps(fields).encode())
    fresh = StateStore([Tier(blobs)], clock=Clock())
    assert [record.id for record in fresh.page("")] == [kept.id]
    assert fresh.repair().lost == [f"records/{folder}/{id}.json"]


def test_content_whose_header_is_nested_too_deeply() -> None:
    text = b'{"__metadata__":' + b"[" * 200_000
    data = len(text).to_bytes(8, "little") + text
    summary = summarize("content/a.safetensors", data)
    assert summary is not None
    assert (summary.bytes, summary.metadata) == (len(data), {})


@pytest.mark.parametrize("tokens", ["Infinity", "@deep list@", "-1", "1e400"])
def test_content_with_metadata_that_make_no_record(tokens: str, tmp_path: Path) -> None:
    metadata = f'{{"parent": null, "tokens": {tokens}, "model": "a"}}'.replace("@deep list@", "[" * 200_000)
    text = json.dumps({"__metadata__": {"ostinato": metadata}}).encode()
    blobs = open_blobs(tmp_path)
    store = one_tier(blobs, Clock())
    record = put(store, len(text).to_bytes(8, "little") + text, owner="")
    blobs.delete(record.key)
    report = store.repair()
    assert (report.rebuilt, report.foreign) == ([], [content_keys(record.content)[0]])


def test_compressed_content_that_announces_more_than_there_is_memory(tmp_path: Path) -> None:
    """A frame (RFC 8878) whose header says 2^62 bytes: the descriptor 0xE0, the size in eight bytes, an empty block."""
    size, digest = 1 << 62, "a" * 64
    blobs = open_blobs(tmp_path)
    frame = b"\x28\xb5\x2f\xfd\xe0" + size.to_bytes(8, "little") + b"\x01\x00\x00"
    assert zstandard.frame_content_size(frame) == size
    blobs.put(content_keys(digest)[1], frame)
    with pytest.raises(StateDamagedError):
        load_content(blobs, digest, size)


def test_a_torch_file_with_tensors_larger_than_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, path)
    assert path.stat().st_size < 2000
    with pytest.raises(CheckpointError, match=r"'a' of shape \(1000000, 1000000\) repeats the numbers"):
        open_weight_file(path)


def test_a_stored_number_with_a_stride_of_zero(tmp_path: Path) -> None:
    path = tmp_path / PTH.name
    tensors = torch.load(PTH, weights_only=True)
    name = next(name for name, tensor in tensors.items() if tensor.dim() == 1)
    torch.save({**tensors, name: torch.zeros(1, dtype=torch.float16).as_strided((1,), (0,))}, path)
    checkpoint = open_checkpoint(path)
    assert len(weights_fingerprint(checkpoint)) == 64
    checkpoint.release()


def test_an_initial_state_for_a_model_in_bfloat16() -> None:
    """Its digest names the same state whatever the model's dtype is, as far as the tuned part goes."""
    state = str(GOLDENS / "rwkv7_state" / "time_state.pth")
    loaded = load_engine(
        EngineConfig(str(PTH), max_batch=1, prefix_cache=0, dtype="bfloat16", initial_states={"a": state})
    )
    assert len(loaded.initial_states["a"].digest) == 64


@pytest.mark.parametrize("text", ["{{ 9**(9**9) }}", "{{ 'a' * 10**12 }}", "{% if [1] * 10**12 %}{% endif %}"])
def test_a_template_with_an_endless_constant(text: str) -> None:
    """It is read at once, and refused where it would be computed."""
    template = ChatTemplate(text, "here")
    with pytest.raises(RequestError, match="makes more than 10000000"):
        template.render([], add_generation_prompt=True, special_tokens={})


def test_a_template_too_deep_for_python() -> None:
    depth = 30
    text = "{% for a in [1] %}" * depth + "{% endfor %}" * depth
    with pytest.raises(TokenizerError, match="here: chat template: too many statically nested blocks"):
        ChatTemplate(text, "here")


MANY_PARTS: list[tuple[str, dict[str, int], str]] = [
    ("recurrent_gemma", {"num_hidden_layers": 10**9}, "num_hidden_layers must be a positive integer up to 4096"),
    ("qwen3_next", {"num_hidden_layers": 10**9}, "num_hidden_layers must be a positive integer up to 4096"),
    ("qwen3_next", {"head_dim": 10**9}, "a head that turns 250000000 elements is wider than any model's"),
    ("qwen3_next", {"num_experts": 10**9}, "num_experts must be a positive integer up to 4096"),
    ("mamba_orig", {"n_layer": 10**9}, "n_layer must be a positive integer up to 4096"),
    (
        "gla",
        {"vocab_size": 10**9, "hidden_size": 6 * 10**8},
        "more than 100000000000000 parameters",
    ),
]


@pytest.mark.parametrize(("golden", "changes", "message"), MANY_PARTS)
def test_a_configuration_of_more_than_any_model_has(
    golden: str, changes: dict[str, int], message: str, tmp_path: Path
) -> None:
    """There is no weight file that would show the first missing tensor."""
    config = json.loads((GOLDENS / golden / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(CheckpointError, match=message):
        read_outline(tmp_path)


def test_a_tokenizer_over_which_its_package_panics(tmp_path: Path) -> None:
    """Its panics are no Exceptions: they would end whoever loads the file. Here a merge is shorter than the prefix."""
    tokenizer = json.loads((GOLDENS / "gla" / "tokenizer.json").read_text())
    tokenizer["model"]["continuing_subword_prefix"] = "a prefix that is longer than any token"
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(TokenizerError, match="the tokenizers package fails"):
        find_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("defined", "message"),
    [
        ({}, "the tokenizers package fails"),
        ({"<s>": {"id": "<s>", "ids": [10**9], "tokens": ["<s>"]}}, r"not in its vocabulary: \[1000000000\]"),
    ],
    ids=["nothing", "another"],
)
def test_a_template_with_a_token_that_there_is_not(defined: dict[str, Any], message: str, tmp_path: Path) -> None:
    """The package reads it, and panics with the first text or gives an id that the model does not have."""
    tokenizer = json.loads((GOLDENS / "gla" / "tokenizer.json").read_text())
    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    template = {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": defined}
    (tmp_path / "tokenizer.json").write_text(json.dumps({**tokenizer, "post_processor": template}))
    with pytest.raises(TokenizerError, match=message):
        find_tokenizer(tmp_path)


def test_a_tokenizer_with_an_id_beyond_any_vocabulary(tmp_path: Path) -> None:
    """Writing it out, as its fingerprint does, would end the process for lack of memory."""
    tokenizer = json.loads((GOLDENS / "gla" / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["far"] = 2**32 - 1
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(TokenizerError, match="the token id 4294967295 is beyond any vocabulary"):
        find_tokenizer(tmp_path)


def test_a_special_token_that_is_half_a_character(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((GOLDENS / "gla" / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "\\ud800"}')
    with pytest.raises(TokenizerError, match=r"bos_token: .* half of a surrogate pair"):
        find_tokenizer(tmp_path)
