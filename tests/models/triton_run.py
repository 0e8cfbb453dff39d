"""What whole models compute in Triton's interpreter: the back end is chosen once for a process, so this is one.

`OSTINATO_KERNELS=triton TRITON_INTERPRET=1 python -m tests.models.triton_run FILE ARCHITECTURE...` writes a safetensors
file with the names ARCHITECTURE/RUN/WHAT, where WHAT is `logits` or a tensor of the final state; its metadata has what
each architecture asks of the host during a decode step.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ostinato.kernels import dispatch
from ostinato.kernels.packed import Packed
from ostinato.models.base import Model
from ostinato.models.registry import load_model
from tests.interpreter import look_once
from tests.models.goldens import golden_values
from tests.models.test_contract import CHECKPOINTS, GOLDENS, Reader, begin_with, open_small

CPU = torch.device("cpu")
TOKENS = 18  # more than are read token by token: the chunked kernels run too
FEW_TOKENS = 10  # where batch-invariance is asked for, any number is read alike; RecurrentGemma has a window of 8
OWN = 3  # the slot that is looked at
MATES = (1, -1)  # another slot, and padding


def main(path: str, architectures: list[str]) -> None:
    found: dict[str, Tensor] = {}
    traffic: dict[str, str] = {}
    look_once()
    with torch.inference_mode():
        for architecture in architectures:
            model = load_model(open_small(architecture), dtype=torch.float32)
            prompt = golden_prompt(architecture)[0]
            for run, (mode, rounds) in RUNS.items():
                length = begin_with(model, 0) + FEW_TOKENS if mode else TOKENS
                with dispatch.running(CPU, batch_invariant=mode):
                    results = read(model, prompt[:length], rounds)
                found |= {f"{architecture}/{run}/{what}": tensor for what, tensor in results.items()}
            traffic[architecture] = json.dumps(decode_traffic(model))
    save_file(found, path, metadata=traffic)


def golden_prompt(architecture: str) -> tuple[list[int], Tensor]:
    """The first tokens of the checkpoint's long prompt, and what others computed for them."""
    folder = CHECKPOINTS[architecture].relative_to(GOLDENS).parts[0]
    golden = golden_values(folder)
    return golden["long.input_ids"][:TOKENS].tolist(), golden["long.logits"][:TOKENS]


Rounds = tuple[tuple[int, bool], ...]
RUNS: dict[str, tuple[bool, Rounds]] = {  # batch-invariant mode; at most so many tokens in each round; with others?
    "normal": (False, ((17, True), (1, False))),
    "whole": (True, ((TOKENS, False),)),
    "split": (True, ((1, False), (1, True), (TOKENS, True))),
}


def read(model: Model, prompt: list[int], rounds: Rounds) -> dict[str, Tensor]:
    reader, logits, start = Reader(model), [], 0
    draw = random.Random(0)
    for round_length, crowded in rounds:
        length = round_length if start else begin_with(model, round_length)
        chunks = {OWN: prompt[start : start + length]}
        if crowded:
            mates = [draw.choices(range(model.vocab_size), k=min(length, 2)) for _ in MATES]
            chunks = {MATES[0]: mates[0], **chunks, MATES[1]: mates[1]}
        logits.append(reader.read(chunks)[OWN])
        start += length
    return {"logits": torch.cat(logits), **reader.state(OWN)}


def decode_traffic(model: Model) -> list[str]:
    """What a decode step, through all launchers, asks of the host. Kernels are left out: they are not the host's."""
    from triton.runtime.interpreter import GridExecutor

    reader = Reader(model)
    batch, tokens = Packed.of([1, 4, -1], [1, 1, 1]), torch.zeros(3, dtype=torch.long)
    launch, launches = GridExecutor.__call__, []
    GridExecutor.__call__ = lambda *_, **__: launches.append(1)
    try:
        with dispatch.running(CPU, batch_invariant=True), host_traffic() as found:
            model.forward(tokens, batch, reader.pool.tensors)
    finally:
        GridExecutor.__call__ = launch
    assert len(launches) > 5, "the model did not run through the launchers"
    return found


_FUNCTIONS = frozenset("item tolist numpy cpu pin_memory __bool__ __int__ __float__ __index__ tensor as_tensor".split())
_OPERATORS = frozenset(
    "_local_scalar_dense nonzero equal masked_select lift_fresh _pin_memory repeat_interleave".split()
)


class _Functions(TorchFunctionMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _FUNCTIONS:
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._overloadpacket.__name__
        indices = [x for x in args[1] if x is not None] if name in ("index", "index_put_") else []
        if name in _OPERATORS or any(x.dtype == torch.bool for x in indices):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def host_traffic() -> Iterator[list[str]]:
    """Collects what, on a GPU, would make the host wait, or copy from memory of its own: a graph captures neither."""
    found: list[str] = []
    with _Functions(found), _Operators(found):
        yield found


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
