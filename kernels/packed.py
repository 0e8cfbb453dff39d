"""Packed sequences: the layout that every operator with memory shares, and the simplest such operator.

T tokens of B sequences lie one after the other; sequence i has the rows `starts[i]:starts[i + 1]`, where `starts`
([B + 1] int32, also called cu_seqlens) may name empty sequences. Its state is row `slots[i]` ([B] int32) of the pool;
-1 is padding: it reads zeros and writes nothing. A slot appears at most once.
"""

import torch
from torch import Tensor


def check_packed(tokens: int, slots: Tensor, starts: Tensor) -> None:
    """Checks dtypes and shapes (not values, which would stall an accelerator)."""
    if slots.dtype != torch.int32 or starts.dtype != torch.int32:
        raise TypeError(f"slots and starts must be int32, got {slots.dtype} and {starts.dtype}")
    if slots.dim() != 1 or starts.shape != (slots.shape[0] + 1,):
        raise ValueError(f"{tuple(slots.shape)} slots need one more start, got {tuple(starts.shape)}")
    if tokens and not slots.numel():
        raise ValueError(f"{tokens} tokens belong to no sequence")


def token_shift(x: Tensor, last: Tensor, slots: Tensor, starts: Tensor) -> Tensor:
    """The previous token's row for every row; the first one of a sequence gets what its slot remembers.

    x: [T, C]; last: [slots, C], same dtype, updated in place to the last row of every sequence. Returns [T, C].
    Only copies, so it is exact on every device. Source: Peng et al. 2023 (RWKV), section 3.1.1.
    """
    check_packed(x.shape[0], slots, starts)
    if last.dtype != x.dtype:
        raise TypeError(f"token_shift: x is {x.dtype}, its memory {last.dtype}")
    filled = starts[1:] > starts[:-1]
    first, final, slots = starts[:-1][filled].long(), starts[1:][filled].long() - 1, slots[filled].long()
    previous = torch.empty_like(x)
    previous[1:] = x[:-1]
    previous[first] = torch.where(slots[:, None] >= 0, last[slots.clamp(min=0)], 0)
    kept = slots >= 0
    last[slots[kept]] = x[final[kept]]
    return previous
