"""Decode steps without Python: as CUDA graphs, where a step of many small kernels costs the host one launch, and on the
CPU as tapes (`ostinato.kernels.tape`).

A graph replays its kernels on the very memory that it was captured with. So the inputs lie in buffers that are written
before every replay, and a step of fewer sequences than the graph has is filled up with padding, which reads no state
and writes none.

A tape replays operators on whatever memory they ask for. Recording it costs no more than the step that it records, and
a row of padding as much as any other: so each batch size is recorded when it is first met, with no padding.

What can be captured: a forward pass that never waits for the device (no `.item()`, `.tolist()` or `nonzero` of a
tensor there), allocates no pinned memory, and whose launches depend on nothing but shapes and numbers of the host.
"""

import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from ostinato.kernels.packed import Packed
from ostinato.models.base import Model, StateTensors

logger = logging.getLogger(__name__)

Replay = Callable[[], Tensor]
Capture = Callable[[Callable[[], Tensor]], Replay]
"""Runs a function once or more, and returns what runs it again: on the same memory, into the same output."""

Record = Callable[[Callable[[], Tensor]], tuple[Tensor, Replay]]
"""Runs a function once. Returns its result, and what runs it again."""

PADDING = -1  # as source and destination


class Decode(Protocol):
    """The forward pass of a model over one token for each of several sequences."""

    def forward(self, tokens: Sequence[int], slots: Sequence[int]) -> Tensor:
        """Reads one token in each slot. Returns [len(tokens), hidden], which the next call may overwrite."""


class CUDACapture:
    """A `Capture` by CUDA graphs. They share one memory pool, since they are replayed one after the other."""

    def __init__(self) -> None:
        self._memory = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], Tensor]) -> Replay:
        """The first run, outside the graph, is the one in which kernels are compiled and libraries initialized."""
        function()
        graph = torch.cuda.CUDAGraph()
        # Other threads of the process may allocate meanwhile: that only ends a capture in the global mode.
        with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
            output = function()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay


def bucket_sizes(most: int) -> tuple[int, ...]:
    """The batch sizes that are captured, up to `most`: 1, 2, 4, 8, then every eighth to 64, then every 32nd.

    A row of padding costs its share of the matrix products, which is next to nothing as long as reading the weights
    takes longer than multiplying by them: in bf16 up to some 200 rows on an H100, by its data sheet. Beyond that, 31
    rows are less than a sixth of the batch. In return there are few graphs, which take time and memory at the start.
    """
    sizes = (1, 2, 4, *range(8, 64, 8), *range(64, most, 32))
    return (*(size for size in sizes if size < most), most)


class _Buffers:
    """Inputs that stay where they are, and the forward pass over the first of them.

    states: advanced in place; device: where they and the model are.
    """

    def __init__(self, model: Model, states: StateTensors, most: int, device: torch.device) -> None:
        self._model = model
        self._states = states
        self._tokens = torch.zeros(most, dtype=torch.int64, device=device)
        self._slots = torch.full((most,), PADDING, dtype=torch.int32, device=device)
        self._starts = torch.arange(most + 1, dtype=torch.int32, device=device)  # of one token each: never refreshed

    def fill(self, tokens: Sequence[int], slots: Sequence[int]) -> None:
        """One token for each slot."""
        size = len(tokens)
        self._tokens[:size].copy_(torch.tensor(tokens))
        self._slots[:size].copy_(torch.tensor(slots, dtype=torch.int32))

    def step(self, size: int) -> Tensor:
        """Over as many sequences. Returns [size, hidden]."""
        slots = self._slots[:size]
        batch = Packed(src=slots, dst=slots, starts=self._starts[: size + 1], longest=1)
        return self._model.forward(self._tokens[:size], batch, self._states)


class DecodeGraphs:
    """A `Decode` over up to `most` sequences, captured on construction.

    states: advanced in place; device: where they and the model are.
    """

    def __init__(self, model: Model, states: StateTensors, most: int, device: torch.device, capture: Capture) -> None:
        self._buffers = _Buffers(model, states, most, device)
        self._sizes = bucket_sizes(most)
        self._replays = self._capture_all(capture)

    def forward(self, tokens: Sequence[int], slots: Sequence[int]) -> Tensor:
        """See `Decode.forward`."""
        size = self._sizes[bisect_left(self._sizes, len(tokens))]
        missing = size - len(tokens)
        self._buffers.fill([*tokens, *[0] * missing], [*slots, *[PADDING] * missing])
        return self._replays[size]()[: len(tokens)]

    def _capture_all(self, capture: Capture) -> dict[int, Replay]:
        """The largest first: what it needs of the graphs' memory is enough for the others. All of it is padding."""
        start = time.monotonic()
        logger.info("capturing decode steps of 1 to %d sequences as CUDA graphs", self._sizes[-1])
        replays = {size: capture(partial(self._buffers.step, size)) for size in reversed(self._sizes)}
        logger.info("captured %d CUDA graphs in %.1f s", len(replays), time.monotonic() - start)
        return replays


class DecodeTapes:
    """A `Decode` over up to `most` sequences, recorded for each batch size when it is first met.

    states: advanced in place; device: where they and the model are.
    """

    def __init__(self, model: Model, states: StateTensors, most: int, device: torch.device, record: Record) -> None:
        self._buffers = _Buffers(model, states, most, device)
        self._record = record
        self._replays: dict[int, Replay] = {}

    def forward(self, tokens: Sequence[int], slots: Sequence[int]) -> Tensor:
        """See `Decode.forward`."""
        self._buffers.fill(tokens, slots)
        size = len(tokens)
        if size not in self._replays:
            result, self._replays[size] = self._record(partial(self._buffers.step, size))
            return result
        try:
            return self._replays[size]()
        except Exception:
            del self._replays[size]  # it may have stopped anywhere, with anything in its registers
            raise
