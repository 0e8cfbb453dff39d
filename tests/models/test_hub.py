"""Models by hub id, against a hub on the local machine: what is fetched, and what is said when that fails."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file

from ostinato.models.checkpoint import open_checkpoint
from ostinato.models.errors import CheckpointError, UnsupportedModelError
from ostinato.models.outline import read_outline
from tests.models.fake_hub import FakeHub

GOLDENS = Path(__file__).parent.parent / "goldens"
CLOSED_PORT = "http://127.0.0.1:9"


def use_endpoint(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The folder of the hub id `some/model`: Mamba's golden checkpoint and files that nobody needs."""
    folder = tmp_path / "repository"
    shutil.copytree(GOLDENS / "mamba_hf", folder)
    (folder / "golden.safetensors").rename(folder / "consolidated.safetensors")
    (folder / "modeling_mamba.py").write_text("raise SystemExit")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    (folder / "README.md").write_text("x")
    return folder


@pytest.fixture
def hub(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A running hub, and the library told to use it with an empty cache and no login."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    huggingface_hub.close_session()
    with FakeHub({"some/model": repository}).running() as hub:
        use_endpoint(monkeypatch, hub.endpoint)
        yield hub
        huggingface_hub.close_session()


def assert_is_golden(model: str) -> None:
    expected = load_file(GOLDENS / "mamba_hf" / "model.safetensors")
    with open_checkpoint(model) as checkpoint:
        for name, tensor in expected.items():
            assert checkpoint.take(name, tuple(tensor.shape)).equal(tensor), name


def test_fetches_what_is_needed_once(hub: FakeHub) -> None:
    assert_is_golden("some/model")
    configs = [
        "config.json",
        "generation_config.json",
        "golden.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert sorted(hub.fetched) == sorted([*configs, "model.safetensors"])
    assert_is_golden("some/model")
    assert len(hub.fetched) == len(configs) + 1, "the second time, the cache answers"


def test_an_outline_needs_no_weights(hub: FakeHub) -> None:
    assert read_outline("some/model").state_spec == read_outline(GOLDENS / "mamba_hf", torch.float32).state_spec
    assert "config.json" in hub.fetched
    assert "model.safetensors" not in hub.fetched


def test_tokenizer_files_lie_in_the_folder(hub: FakeHub) -> None:
    checkpoint = open_checkpoint("some/model")
    assert (checkpoint.folder / "tokenizer.json").is_file()
    checkpoint.release()


def test_the_cache_serves_when_the_hub_is_gone(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_is_golden("some/model")
    use_endpoint(monkeypatch, CLOSED_PORT)
    assert_is_golden("some/model")


def test_shards_are_fetched(hub: FakeHub, repository: Path) -> None:
    shard = "model-00001-of-00001.safetensors"
    (repository / "model.safetensors").rename(repository / shard)
    weight_map = dict.fromkeys(load_file(repository / shard), shard)
    (repository / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_is_golden("some/model")


def test_bin_is_fetched_where_there_is_no_safetensors(hub: FakeHub) -> None:
    hub.repositories["state-spaces/mamba"] = GOLDENS / "mamba_orig"
    checkpoint = open_checkpoint("state-spaces/mamba")
    assert checkpoint.architecture == "mamba_ssm"
    assert hub.fetched[-1] == "pytorch_model.bin"
    checkpoint.release()


def test_the_only_pth_file_is_fetched(hub: FakeHub) -> None:
    hub.repositories["some/rwkv"] = GOLDENS / "rwkv7_pth"
    checkpoint = open_checkpoint("some/rwkv")
    assert checkpoint.architecture == "rwkv7_pth"
    assert (checkpoint.folder / "rwkv_vocab_v20230424.txt").is_file()
    checkpoint.release()


def test_the_cache_serves_a_pth_file_when_the_hub_is_gone(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["some/rwkv"] = GOLDENS / "rwkv7_pth"
    open_checkpoint("some/rwkv").release()
    use_endpoint(monkeypatch, CLOSED_PORT)
    open_checkpoint("some/rwkv").release()


def test_of_several_pth_files_none_is_fetched(hub: FakeHub, tmp_path: Path) -> None:
    folder = tmp_path / "several"
    folder.mkdir()
    for name in ("b.pth", "a.pth"):
        (folder / name).write_bytes(b"x")
    hub.repositories["some/several"] = folder
    with pytest.raises(
        CheckpointError, match=r"'some/several' .* several \.pth files \(a\.pth, b\.pth\); download one"
    ):
        open_checkpoint("some/several")
    assert hub.fetched == []


def test_neither_config_nor_pth(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    (tmp_path / "nothing" / "model.gguf").write_bytes(b"x")
    hub.repositories["some/nothing"] = tmp_path / "nothing"
    with pytest.raises(CheckpointError, match=r"'some/nothing' has neither a config\.json nor a \.pth file"):
        open_checkpoint("some/nothing")


def test_what_is_not_served_is_refused_before_its_weights_are_fetched(hub: FakeHub, repository: Path) -> None:
    (repository / "config.json").write_text('{"architectures": ["NobodysForCausalLM"]}')
    with pytest.raises(UnsupportedModelError, match="NobodysForCausalLM is not served"):
        open_checkpoint("some/model")
    assert "model.safetensors" not in hub.fetched


REMEDY = r"A local folder with config\.json and the weights can be given instead"


def test_not_found(hub: FakeHub) -> None:
    with pytest.raises(CheckpointError, match=rf"'some/other' is no local path.*not found, or private.*{REMEDY}"):
        open_checkpoint("some/other")


def test_gated(hub: FakeHub) -> None:
    hub.gated.add("some/model")
    with pytest.raises(CheckpointError, match=rf"'some/model'.*access is restricted.*hf auth login.*{REMEDY}"):
        open_checkpoint("some/model")


def test_not_reachable(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    use_endpoint(monkeypatch, CLOSED_PORT)
    with pytest.raises(CheckpointError, match=rf"'some/model' is no local path.*cannot be reached.*{REMEDY}"):
        open_checkpoint("some/model")


def test_not_a_valid_hub_id(hub: FakeHub) -> None:
    with pytest.raises(CheckpointError, match=rf"'some/mo\.\.del'.*HFValidationError.*{REMEDY}"):
        open_checkpoint("some/mo..del")
