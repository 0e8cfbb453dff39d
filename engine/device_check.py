"""Whether whole models run rightly on a device: checks for `ostinato doctor --gpu`, on the models that come along."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ostinato.engine.graphs import Capture, DecodeGraphs
from ostinato.engine.state_pool import StatePool
from ostinato.kernels import dispatch
from ostinato.kernels.packed import Packed
from ostinato.models import demo
from ostinato.models.base import Model
from ostinato.models.checkpoint import open_checkpoint
from ostinato.models.registry import load_model

if TYPE_CHECKING:
    from ostinato.kernels.gpu.doctor import Check

LOGITS_BOUND = 1e-4  # of two correct implementations in fp32, several layers deep
PROMPT, STEPS = 70, 5  # tokens: longer than a chunk of any kernel, and then one at a time
SLOTS = 3


def model_checks(device: str, capture: Capture) -> Iterator[Check]:
    """The checks of each model, in fp32. Only where `ostinato.kernels.gpu` can be imported."""
    from ostinato.kernels.gpu.doctor import Check

    for name in demo.NAMES:
        path = demo.path(name)
        for check, bound, error in (
            ("logits = CPU", LOGITS_BOUND, partial(logits_error, path, device)),
            ("batch-invariant", 0.0, partial(split_error, path, device)),
            ("graph replay", 0.0, partial(graph_error, path, device, capture)),
        ):
            yield Check(check, f"demo:{name}", torch.float32, bound, error)


def logits_error(path: Path, device: str) -> float:
    """Of a prompt and of a few steps after it, against the CPU."""
    expected, found = (Reader(path, place).read_all() for place in ("cpu", device))
    return _relative_error(found.cpu(), expected)


def split_error(path: Path, device: str) -> float:
    """In batch-invariant mode, of two sequences token by token, against each of them at once: 0 for the same bits."""
    together, alone = Reader(path, device, batch_invariant=True), Reader(path, device, batch_invariant=True)
    tokens = together.random_tokens(2 * PROMPT).view(2, PROMPT)
    stepped = torch.stack([together.read([0, 2], column.contiguous()) for column in tokens.T], dim=1)
    whole = torch.stack([alone.read([slot], row) for slot, row in zip((0, 2), tokens, strict=True)])
    return 0.0 if torch.equal(stepped, whole) else max(_relative_error(stepped, whole), 1e-30)


def graph_error(path: Path, device: str, capture: Capture) -> float:
    """Of steps that are replayed, against the same steps run: 0 for the same bits."""
    eager, replayed = Reader(path, device), Reader(path, device)
    prompt = eager.random_tokens(2 * PROMPT)
    for reader in (eager, replayed):
        reader.read([2, 0], prompt)
    graphs, worst = replayed.graphs(capture), 0.0
    for _ in range(STEPS):
        tokens = eager.random_tokens(2)
        expected, found = eager.read([2, 0], tokens), replayed.replay(graphs, [2, 0], tokens)
        if not torch.equal(found, expected):
            worst = max(worst, _relative_error(found, expected), 1e-30)
    return worst


class Reader:
    """A model and the states of a few sequences on a device."""

    def __init__(self, path: Path, device: str, *, batch_invariant: bool = False) -> None:
        self._device = torch.device(device)
        self._batch_invariant = batch_invariant
        self._draw = random.Random(0)
        self._model: Model = load_model(open_checkpoint(str(path)), device, torch.float32)
        self._pool = StatePool(self._model.state_spec, SLOTS, device)

    def random_tokens(self, count: int) -> Tensor:
        """The next tokens of a fixed series."""
        return torch.tensor(self._draw.choices(range(self._model.vocab_size), k=count), device=self._device)

    @torch.inference_mode()
    def read(self, slots: list[int], tokens: Tensor) -> Tensor:
        """The logits [len(tokens), rows] of as many tokens for each slot."""
        batch = Packed.of(slots, [len(tokens) // len(slots)] * len(slots), device=self._device)
        with dispatch.running(self._device, batch_invariant=self._batch_invariant):
            return self._model.logits(self._model.forward(tokens, batch, self._pool.tensors))

    def read_all(self) -> Tensor:
        """The logits of a prompt and of some steps, in two slots."""
        lengths = (PROMPT, *[1] * STEPS)
        return torch.cat([self.read([1, 0], self.random_tokens(2 * length)) for length in lengths])

    @torch.inference_mode()
    def graphs(self, capture: Capture) -> DecodeGraphs:
        """Steps of this model and these states."""
        with dispatch.running(self._device, batch_invariant=self._batch_invariant):
            return DecodeGraphs(self._model, self._pool.tensors, SLOTS, self._device, capture)

    @torch.inference_mode()
    def replay(self, graphs: DecodeGraphs, slots: list[int], tokens: Tensor) -> Tensor:
        """As `read`, one token for each slot."""
        with dispatch.running(self._device, batch_invariant=self._batch_invariant):
            return self._model.logits(graphs.forward(tokens.tolist(), slots))


def _relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())
