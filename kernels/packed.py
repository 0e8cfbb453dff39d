"""Packed sequences: the layout that every operator with memory shares.

T tokens of B sequences lie one after the other; sequence i has the rows `starts[i]:starts[i + 1]`, where `starts` (also
called cu_seqlens) may name empty sequences. Its memory is read from row `src[i]` of the pool and written to row
`dst[i]`: a source of -1 reads zeros, a destination of -1 writes nothing. Sources may repeat, which is a fork. A
destination appears at most once, and is no other sequence's source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ostinato.kernels.treatment import Treatment


@dataclass(frozen=True, slots=True)
class Packed:
    """Where the tokens of one forward pass belong.

    src, dst: [B] int32 slots; starts: [B + 1] int32, cumulative lengths from 0 to T; longest: the longest sequence's
    length, known on the host so that an accelerator need not be asked. begins: which of the sequences begin with these
    tokens, for models that read the first tokens of a prompt at once; none of these is padding. treatment: how the
    recurrence reads them, if not as the model was trained.
    """

    src: Tensor
    dst: Tensor
    starts: Tensor
    longest: int
    begins: tuple[int, ...] = ()
    treatment: Treatment | None = None

    @classmethod
    def of(
        cls,
        src: Sequence[int],
        lengths: Sequence[int],
        *,
        dst: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
        begins: Sequence[int] = (),
        treatment: Treatment | None = None,
    ) -> Packed:
        """Packs sequences of `lengths` tokens; `dst` is `src` unless it is given."""

        def int32(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int32, device=device)

        starts = [0, *accumulate(lengths)]
        into, longest = src if dst is None else dst, max(lengths, default=0)
        return cls(int32(src), int32(into), int32(starts), longest, tuple(begins), treatment)

    def check(self, tokens: int) -> None:
        """Checks dtypes and shapes (not values, which would stall an accelerator). Raises TypeError, ValueError."""
        dtypes = (self.src.dtype, self.dst.dtype, self.starts.dtype)
        if dtypes != (torch.int32,) * 3:
            raise TypeError(f"slots and starts must be int32, got {dtypes}")
        if self.src.dim() != 1 or self.dst.shape != self.src.shape or self.starts.shape != (self.src.shape[0] + 1,):
            raise ValueError(
                f"{tuple(self.src.shape)} sources need as many destinations, got {tuple(self.dst.shape)}, "
                f"and one more start, got {tuple(self.starts.shape)}"
            )
        if tokens and not self.src.numel():
            raise ValueError(f"{tokens} tokens belong to no sequence")


def read_slots(pool: Tensor, src: Tensor) -> Tensor:
    """The rows of `pool` [slots, ...] that `src` [B] names, zeros where it is -1 (for reference implementations)."""
    known = (src >= 0).view(-1, *(1,) * (pool.dim() - 1))
    return torch.where(known, pool[src.clamp(min=0).long()], 0)


def write_slots(pool: Tensor, dst: Tensor, rows: Tensor) -> None:
    """Writes row i of `rows` [B, ...] to row dst[i] of `pool`, in place, but where it is -1 (likewise)."""
    kept = dst >= 0
    pool[dst[kept].long()] = rows[kept].to(pool.dtype)
