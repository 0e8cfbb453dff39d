"""Tuned initial states of RWKV: what others compute from them, and what is wrong with a file, said by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ostinato.models.base import Model
from ostinato.models.checkpoint import open_checkpoint
from ostinato.models.errors import CheckpointError, UnsupportedModelError
from ostinato.models.initial_state import load_initial_state
from ostinato.models.registry import load_model
from tests.models import bad_files as bad
from tests.models.checkpoints import Tensors, write_pth
from tests.models.goldens import FOLDER, PATHS
from tests.models.random_rwkv import rwkv5_pth, rwkv6_fla
from tests.models.running import Reader, relative_error
from tests.oracles.client import Oracle

BOUND = 1e-5
STATES = {"rwkv6_state": ["rwkv6_pth", "rwkv6_hf", "rwkv6_fla"], "rwkv7_state": ["rwkv7_pth", "rwkv7_fla"]}
SAME_WEIGHTS = [(state, model) for state, models in STATES.items() for model in models]
NAME = "blocks.1.att.time_state"


def load(path: Path, dtype: torch.dtype = torch.float32) -> Model:
    return load_model(open_checkpoint(path), dtype=dtype)


def state_file(name: str) -> Path:
    return FOLDER / name / "time_state.pth"


@pytest.mark.parametrize("prompt", ["short", "long"])
@pytest.mark.parametrize(("state", "base"), SAME_WEIGHTS)
def test_logits_from_a_tuned_state(state: str, base: str, prompt: str) -> None:
    golden, model = load_file(FOLDER / state / "golden.safetensors"), load(PATHS[base])
    ids, greedy = golden[f"{prompt}.input_ids"].tolist(), golden[f"{prompt}.greedy_ids"].tolist()
    found = Reader(model, load_initial_state(state_file(state), model)).read([*ids, *greedy[:-1]])
    assert relative_error(found[: len(ids)], golden[f"{prompt}.logits"]) <= BOUND
    continued = found[len(ids) - 1 :]
    assert relative_error(continued, golden[f"{prompt}.greedy_logits"]) <= BOUND
    assert continued.argmax(-1).tolist() == greedy


@pytest.mark.parametrize("seed", range(2))
def test_logits_of_rwkv5_from_a_random_state(seed: int, tmp_path: Path, oracle: Callable[[str], Oracle]) -> None:
    """The authors' package takes the state from among the model's tensors."""
    path = rwkv5_pth(seed, tmp_path, hidden_size=64, keys=64, values=64, heads=2).path
    model, generator = load(path), torch.Generator().manual_seed(seed)
    (wkv, *_) = model.state_spec.tensors
    state = {
        f"blocks.{layer}.att.time_state": torch.randn(wkv.shape, generator=generator) for layer in range(wkv.layers)
    }
    tensors = torch.load(path, weights_only=True)
    merged, own = tmp_path / "merged.pth", tmp_path / "own.pth"
    torch.save({**tensors, **state}, merged)
    torch.save(state, own)
    ids = torch.randint(0, 300, (9,), generator=generator).tolist()
    found = Reader(model, load_initial_state(own, model)).read(ids)
    assert relative_error(found, oracle("rwkv_pip_v6").logits(merged, [ids])[0]) <= BOUND, f"seed {seed}"
    assert relative_error(found, Reader(model).read(ids)) > 0.1


def test_a_whole_state_in_the_specs_dtypes() -> None:
    model = load(PATHS["rwkv7_pth"], torch.bfloat16)
    state = load_initial_state(str(state_file("rwkv7_state")), model)
    stored = torch.load(state_file("rwkv7_state"), weights_only=True)
    assert list(state) == [tensor.name for tensor in model.state_spec.tensors]
    for tensor in model.state_spec.tensors:
        assert state[tensor.name].shape == (tensor.layers, *tensor.shape)
        assert state[tensor.name].dtype == tensor.dtype
        assert state[tensor.name].is_contiguous()
    assert torch.equal(state["wkv"][1], stored[NAME].float().transpose(1, 2))
    assert not state["time_shift"].any()
    assert not state["channel_shift"].any()


def without(name: str) -> bad.Change:
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def put(name: str, make: Callable[[torch.Tensor], torch.Tensor]) -> bad.Change:
    return lambda tensors: {**tensors, name: make(tensors[NAME])}


def with_element(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: tensor.flatten().index_fill(0, torch.tensor(5), value).view(tensor.shape)


FAULTS: dict[str, tuple[bad.Change, str]] = {
    "layer_missing": (without(NAME), rf"lacks '{NAME}', but the model has 2 layers; use a state"),
    "layer_too_many": (put("blocks.2.att.time_state", torch.clone), "has one for layer 2, but the model has 2 layers"),
    "layer_twice": (put("blocks.01.att.time_state", torch.clone), r"holds 'blocks\.01\.att\.time_state'"),
    "layer_of_5000_digits": (put(f"blocks.{'9' * 5000}.att.time_state", torch.clone), r"holds 'blocks\.9999"),
    "other_tensors": (put("emb.weight", torch.clone), r"holds 'emb\.weight': .*file of their own"),
    "heads_missing": (
        put(NAME, lambda x: x[:1]),
        rf"'{NAME}' has shape \(1, 64, 64\), but the model needs \(2, 64, 64",
    ),
    "flat": (put(NAME, torch.flatten), rf"'{NAME}' has shape \(8192,\)"),
    "not_a_number": (put(NAME, with_element(torch.nan)), rf"'{NAME}' holds numbers that are not finite"),
    "infinite": (put(NAME, with_element(-torch.inf)), rf"'{NAME}' holds numbers that are not finite"),
    "integers": (put(NAME, lambda x: x.int()), rf"'{NAME}' is torch\.int32; save it as float32"),
    "nothing": (lambda tensors: {}, "holds no tensors"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("golden", ["rwkv6_state", "rwkv7_state"])
def test_a_file_that_does_not_fit_is_named(golden: str, fault: str, tmp_path: Path) -> None:
    change, message = FAULTS[fault]
    file = tmp_path / "time_state.pth"
    torch.save(change(torch.load(state_file(golden), weights_only=True)), file)
    with pytest.raises(CheckpointError, match=rf"{re.escape(str(file))}:? {message}"):
        load_initial_state(file, load(PATHS[golden.replace("state", "pth")]))


@pytest.mark.parametrize("name", ["rwkv4_pth", "mamba_hf", "gla"])
def test_a_family_without_tuned_states_is_named(name: str) -> None:
    model = load(PATHS[name])
    with pytest.raises(UnsupportedModelError, match=f"time_state.pth: {model.family} takes no .*RWKV-5.2, RWKV-6, RWK"):
        load_initial_state(state_file("rwkv7_state"), model)


def test_a_state_whose_width_is_not_its_height(tmp_path: Path) -> None:
    """Files hold [heads, value, key] for RWKV-6: the model below has keys of 16 and values of 32."""
    model = load(rwkv6_fla(1, tmp_path, hidden_size=64, num_heads=2, expand_k=0.5, expand_v=1.0).path)
    layers = model.state_spec.tensors[0].layers
    made: Tensors = {f"blocks.{i}.att.time_state": torch.randn(2, 32, 16) for i in range(layers)}
    state = load_initial_state(write_pth(tmp_path / "state.pth", made, "float32"), model)
    assert torch.equal(state["wkv"][0], made["blocks.0.att.time_state"])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pth is missing"):
        load_initial_state(tmp_path / "none.pth", load(PATHS["rwkv7_pth"]))


def test_code_in_a_state_file_is_refused_and_never_runs(tmp_path: Path) -> None:
    file, trace = tmp_path / "time_state.pth", tmp_path / "it-ran"
    torch.save({NAME: bad.RunsCommand(trace)}, file)
    with pytest.raises(CheckpointError, match=r"time_state\.pth is truncated, damaged, or holds objects other than"):
        load_initial_state(file, load(PATHS["rwkv7_pth"]))
    assert not trace.exists()
    torch.load(file, weights_only=False)
    assert trace.exists(), "the payload does nothing even when it is let run, so the test proves nothing"
