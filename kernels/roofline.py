"""What this machine can do at most, measured, and the time that a step would take if nothing else cost anything.

A step has to read the weights of the projections, to multiply with them, and to read and write states. Weights stream
through the same cores that multiply, so of those two the slower one counts (the roofline of Williams, Waterman and
Patterson 2009); states are moved before or after, so their time is added:

    seconds = max(weight bytes / read bandwidth, FLOP / product rate) + state bytes / copy bandwidth

The rates are the machine's, not ours: of several ways to do a thing the fastest counts. Of several tries it is the
median, since what they are compared with are medians, on a machine that may be shared.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.kernels.dispatch import wait_for
from ostinato.kernels.linear import Linear

BUFFER_BYTES = 2**30  # far beyond the caches of any machine
TRIES = 5
PRODUCTS = ((512, 1024, 1024), (512, 2048, 2048), (4096, 4096, 4096), (8192, 8192, 8192))  # rows, out, in
LONG_PRODUCT = 0.02  # seconds: a product of that length is no longer slowed down by how it is started


@dataclass(frozen=True, slots=True)
class Work:
    """What a step has to do. FLOP counts a multiplication and an addition as two; states are read and written."""

    weight_bytes: int
    flop: int
    state_bytes: int


@dataclass(frozen=True, slots=True)
class Rates:
    """read: bytes per second. copy: bytes read plus bytes written per second. product: FLOP per second."""

    read: float
    copy: float
    product: float

    def seconds(self, work: Work) -> float:
        """The least time for a step."""
        projections = max(work.weight_bytes / self.read, work.flop / self.product)
        return projections + work.state_bytes / self.copy

    def mean(self, other: "Rates") -> "Rates":
        """Of two measurements, each rate by itself."""
        return Rates(*((getattr(self, name) + getattr(other, name)) / 2 for name in ("read", "copy", "product")))


@dataclass(frozen=True, slots=True)
class Bandwidths:
    """Of memory, in bytes per second; `copy` counts bytes read plus bytes written."""

    read: float
    copy: float


def measure_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """Measures with as many threads as PyTorch has now. Takes a few seconds, and `BUFFER_BYTES` of memory.

    dtype: of the matrix products.
    """
    memory = measure_bandwidths(device, BUFFER_BYTES)
    return Rates(memory.read, memory.copy, measure_product(device, dtype))


@torch.inference_mode()
def measure_bandwidths(device: torch.device, num_bytes: int) -> Bandwidths:
    """On a buffer of `num_bytes`.

    Reading is done in several ways, since none is the fastest everywhere. Copying is done in place, as states are
    updated: every line is read once and written once. Copying to elsewhere would read the destination's lines first,
    or not, depending on the instructions: a figure that says nothing about updates in place.
    """
    buffer = torch.ones(num_bytes // 4, device=device)
    halves, rows = buffer.chunk(2), buffer.view(-1, 1024)
    ones = torch.ones(1024, device=device)
    readers: tuple[Callable[[], Tensor], ...] = (
        buffer.sum,
        lambda: torch.dot(*halves),
        lambda: torch.mv(rows, ones),
    )
    reading = min(median_seconds(read, device) for read in readers)
    copying = median_seconds(lambda: buffer.mul_(1.0), device)
    return Bandwidths(num_bytes / reading, 2 * num_bytes / copying)


@torch.inference_mode()
def measure_product(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP per second of a matrix product in `dtype`: the engine's projection, or PyTorch's where that is faster."""
    best = 0.0
    for rows, out, into in PRODUCTS:
        seconds = min(median_seconds(product, device) for product in _products(rows, out, into, device, dtype))
        best = max(best, 2 * math.prod((rows, out, into)) / seconds)
        if seconds >= LONG_PRODUCT:
            break
    return best


def _products(
    rows: int, out: int, into: int, device: torch.device, dtype: torch.dtype
) -> Iterator[Callable[[], Tensor]]:
    x = torch.randn(rows, into, device=device).to(dtype)
    weight = torch.randn(out, into, device=device).to(dtype)
    projection = Linear(weight)
    yield lambda: projection(x)
    yield lambda: F.linear(x, weight)


def median_seconds(call: Callable[[], object], device: torch.device, tries: int = TRIES) -> float:
    """Of several tries, after one that warms up; the device has finished when a try ends."""
    call()
    seconds = []
    for _ in range(tries):
        wait_for(device)
        start = time.perf_counter()
        call()
        wait_for(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
