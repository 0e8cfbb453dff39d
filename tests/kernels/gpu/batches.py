"""Random packed batches with every relation of source to destination."""

import torch

from ostinato.kernels.packed import Packed

SLOTS = 9


def random_packed(generator: torch.Generator, longest: int = 40) -> Packed:
    """1 to 6 sequences of 0 to `longest` tokens, at least one token in all; slots in no order."""

    def below(bound: int) -> int:
        return int(torch.randint(0, bound, (), generator=generator))

    shared, *free = torch.randperm(SLOTS, generator=generator).tolist()
    lengths = [below((2, 6, longest + 1)[i % 3]) for i in range(1 + below(6))]
    lengths[-1] = max(1, lengths[-1])
    src, dst = [], []
    for _ in lengths:
        own = free.pop()
        source, destination = ((own, own), (shared, own), (-1, own), (shared, -1), (-1, -1))[below(5)]
        src.append(source)
        dst.append(destination)
    return Packed.of(src, lengths, dst=dst)


def steps(batch: Packed) -> Packed:
    """One token for each of the batch's slots."""
    return Packed.of(batch.src.tolist(), [1] * batch.src.numel(), dst=batch.dst.tolist())


def sequences(batch: Packed) -> list[tuple[int, int, int, int]]:
    """Source, destination, first row and the row after the last, of every sequence."""
    bounds = batch.starts.tolist()
    return list(zip(batch.src.tolist(), batch.dst.tolist(), bounds[:-1], bounds[1:], strict=True))


def unread(batch: Packed) -> list[int]:
    """Slots that no sequence reads."""
    return [slot for slot in range(SLOTS) if slot not in batch.src.tolist()]


def unwritten(batch: Packed) -> list[int]:
    """Slots that no sequence writes."""
    return [slot for slot in range(SLOTS) if slot not in batch.dst.tolist()]
