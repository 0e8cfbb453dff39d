"""Random packed batches: unordered slots, padding, empty sequences."""

from dataclasses import dataclass

import torch
from torch import Tensor

SLOTS = 9


@dataclass(frozen=True, slots=True)
class Batch:
    lengths: tuple[int, ...]
    slots: Tensor
    starts: Tensor

    @property
    def tokens(self) -> int:
        return sum(self.lengths)

    @property
    def untouched(self) -> Tensor:
        """Slots that no sequence with tokens uses."""
        used = {slot for slot, length in zip(self.slots.tolist(), self.lengths, strict=True) if length}
        return torch.tensor([slot for slot in range(SLOTS) if slot not in used])


def pack(lengths: list[int], slots: list[int]) -> Batch:
    starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return Batch(tuple(lengths), torch.tensor(slots, dtype=torch.int32), starts)


def random_batch(generator: torch.Generator) -> Batch:
    """1 to 6 sequences of 0 to 40 tokens, mostly short, some of them padding; at least one token."""
    count = int(torch.randint(1, 7, (), generator=generator))
    lengths = [int(torch.randint(0, (2, 5, 41)[i % 3], (), generator=generator)) for i in range(count)]
    lengths[0] = max(1, lengths[0])
    slots = torch.randperm(SLOTS, generator=generator)[:count].tolist()
    for i in range(1, count):
        if torch.rand((), generator=generator) < 0.3:
            slots[i] = -1
    return pack(lengths, slots)


def uniform(generator: torch.Generator, *shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
    return torch.rand(*shape, generator=generator) * (high - low) + low


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference over that of what is expected."""
    return float((found.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30))
