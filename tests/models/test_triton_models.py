"""Every model on the Triton kernels, in Triton's interpreter, in fp32.

It is slow, and what differs between back ends are operators. So only as many architectures are run as call every
operator in every form in which a model calls it. The back end is the whole process's, so one other process computes
everything (`triton_run.py`).
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ostinato.models.checkpoint import open_checkpoint
from ostinato.models.registry import load_model
from tests.models.running import Reader, relative_error
from tests.models.test_contract import CHECKPOINTS
from tests.models.triton_run import golden_prompt, host_traffic

ROOT = Path(__file__).parents[2]
BOUND = 1e-4

pytestmark = [
    pytest.mark.long(minutes=3),
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None and "CI" not in os.environ,
        reason="there is no Triton here: `pip install triton` (Linux) runs its kernels in its interpreter",
    ),
]


def form_of(argument: Any) -> Any:
    """How many dimensions a tensor has, or each of several, and what else there is as it is."""
    if isinstance(argument, list):
        return tuple(form_of(x) for x in argument)
    return f"{argument.dim()} dimensions" if isinstance(argument, Tensor) else argument


class _Calls(TorchDispatchMode):
    """Collects which operators of ours are called, and in which forms: operands, their dimensions, switches."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[tuple[object, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "ostinato":
            given = {**dict(enumerate(args)), **(kwargs or {})}
            form = {name: form_of(x) for name, x in given.items()}
            self.found.add((func.name(), *(item for item in form.items() if type(item[1]) not in (int, float))))
        return func(*args, **(kwargs or {}))


@functools.cache
def forms_of(architecture: str) -> frozenset[tuple[object, ...]]:
    model = load_model(open_checkpoint(CHECKPOINTS[architecture]), dtype=torch.float32)
    with _Calls() as calls:
        Reader(model).read([1, 2, 3])
    return frozenset(calls.found)


def that_cover(architectures: list[str]) -> list[str]:
    """A few that together call all that any calls: again and again the one that adds most."""
    left = set[tuple[object, ...]]().union(*map(forms_of, architectures))
    chosen = []
    while left:
        chosen.append(max(architectures, key=lambda architecture: len(forms_of(architecture) & left)))
        left -= forms_of(chosen[-1])
    return sorted(chosen)


RUN = that_cover(sorted(CHECKPOINTS, reverse=True))
each_architecture = pytest.mark.parametrize("architecture", RUN)


def test_no_form_is_left_out() -> None:
    """Two layouts of a model have the same; models have not."""
    run = set[tuple[object, ...]]().union(*map(forms_of, RUN))
    for architecture in CHECKPOINTS:
        assert forms_of(architecture) <= run, architecture
    assert forms_of("RWKV7ForCausalLM") == forms_of("rwkv7_pth")
    assert not forms_of("MambaForCausalLM") <= forms_of("Mamba2ForCausalLM")


class Found:
    """The tensors that the other process wrote."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            self.traffic: dict[str, str] = file.metadata()
            self._tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict

    def of(self, architecture: str, run: str) -> dict[str, Tensor]:
        prefix = f"{architecture}/{run}/"
        return {name.removeprefix(prefix): x for name, x in self._tensors.items() if name.startswith(prefix)}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    path = tmp_path_factory.mktemp("triton") / "found.safetensors"
    environment = os.environ | {"OSTINATO_KERNELS": "triton", "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "error", "-m", "tests.models.triton_run", str(path), *RUN]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Found(path)


@each_architecture
def test_logits_are_those_of_others_and_of_the_cpp(found: Found, architecture: str) -> None:
    """A prompt in chunks and a step, among other sequences."""
    prompt, golden = golden_prompt(architecture)
    model = load_model(open_checkpoint(CHECKPOINTS[architecture]), dtype=torch.float32)
    logits = found.of(architecture, "normal")["logits"]
    assert relative_error(logits, golden) <= BOUND
    assert relative_error(logits, Reader(model).read(prompt)) <= BOUND


@each_architecture
def test_batch_invariant_bits(found: Found, architecture: str) -> None:
    """Read at once, or token by token and in chunks, alone and among others and padding: logits and state."""
    whole, split = found.of(architecture, "whole"), found.of(architecture, "split")
    assert whole.keys() == split.keys() > {"logits"}
    for name, tensor in whole.items():
        assert torch.equal(split[name], tensor), name
    golden = golden_prompt(architecture)[1]
    assert relative_error(whole["logits"], golden[: len(whole["logits"])]) <= BOUND


@each_architecture
def test_a_decode_step_can_be_captured(found: Found, architecture: str) -> None:
    """Nothing in a model or in a launcher waits for the device, or copies from the host."""
    assert json.loads(found.traffic[architecture]) == []


@pytest.mark.parametrize(
    "culprit",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: bool(x.any()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.tensor([1, 2]),
        lambda x: torch.arange(3).repeat_interleave(torch.arange(3)),
        lambda x: int(x[0]),
        lambda x: x.cpu(),
    ],
)
def test_what_cannot_be_captured_is_noticed(culprit) -> None:  # type: ignore[no-untyped-def]  # lambdas of any result
    with host_traffic() as noticed:
        culprit(torch.ones(3))
    assert noticed
