"""Random packed batches, random values, and how results are compared."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ostinato.kernels.packed import Packed

SLOTS = 9


def random_packed(generator: torch.Generator, longest: int = 40) -> Packed:
    """1 to 6 sequences of 0 to `longest` tokens, mostly short, at least one token in all; slots in no order.

    Each sequence goes on in place, forks from a slot that others read too, or begins empty; or it leaves nothing
    behind: of the shared slot, of one that only it reads, or as padding on both sides.
    """

    def below(bound: int) -> int:
        return int(torch.randint(0, bound, (), generator=generator))

    shared, *free = torch.randperm(SLOTS, generator=generator).tolist()
    lengths = [below(min((2, 6, longest + 1)[i % 3], longest + 1)) for i in range(1 + below(6))]
    lengths[-1] = max(1, lengths[-1])
    src, dst = [], []
    for own in free[: len(lengths)]:
        source, destination = ((own, own), (shared, own), (-1, own), (shared, -1), (own, -1), (-1, -1))[below(6)]
        src.append(source)
        dst.append(destination)
    return Packed.of(src, lengths, dst=dst)


def steps(batch: Packed) -> Packed:
    """One token for each of the batch's sequences."""
    return Packed.of(batch.src.tolist(), [1] * batch.src.numel(), dst=batch.dst.tolist())


def tokens_of(batch: Packed) -> int:
    """How many tokens all sequences have together."""
    return int(batch.starts[-1])


def sequences(batch: Packed) -> list[tuple[int, int, int, int]]:
    """Source, destination, first row and the row after the last, of every sequence."""
    bounds = batch.starts.tolist()
    return list(zip(batch.src.tolist(), batch.dst.tolist(), bounds[:-1], bounds[1:], strict=True))


def unread(batch: Packed) -> list[int]:
    """Slots that no sequence reads."""
    return [slot for slot in range(SLOTS) if slot not in batch.src.tolist()]


def written(batch: Packed) -> list[int]:
    """Slots that a sequence writes."""
    return [slot for slot in batch.dst.tolist() if slot >= 0]


def unwritten(batch: Packed) -> list[int]:
    """Slots that no sequence writes."""
    return [slot for slot in range(SLOTS) if slot not in batch.dst.tolist()]


def poisoned(pool: Tensor, batch: Packed) -> Tensor:
    """A copy of a pool [SLOTS, ...] in which all that may not be read is NaN."""
    copy = pool.clone()
    copy[unread(batch)] = torch.nan
    return copy


def same_bits(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors of one dtype are equal byte by byte, NaN being equal to itself."""
    assert left.dtype == right.dtype
    return left.shape == right.shape and torch.equal(
        left.contiguous().view(torch.uint8), right.contiguous().view(torch.uint8)
    )


def uniform(generator: torch.Generator, *shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
    return torch.rand(*shape, generator=generator) * (high - low) + low


def spaced(x: Tensor) -> Tensor:
    """The same values [T, ...] as a slice of longer rows with NaN around it: one output of a joined projection."""
    row = math.prod(x.shape[1:])
    wide = torch.full((x.shape[0], row + 5), torch.nan, dtype=x.dtype)
    wide[:, 3 : row + 3] = x.reshape(x.shape[0], row)
    return wide[:, 3 : row + 3].unflatten(1, x.shape[1:]) if x.dim() > 2 else wide[:, 3 : row + 3]


def thread_counts(*counts: int) -> Iterator[int]:
    """Sets PyTorch's number of threads to each of `counts` in turn, and back at the end."""
    before = torch.get_num_threads()
    try:
        for count in counts:
            torch.set_num_threads(count)
            yield count
    finally:
        torch.set_num_threads(before)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference over that of what is expected."""
    return float((found.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30))
