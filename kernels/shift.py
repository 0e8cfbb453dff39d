"""Token shift: every token mixed with the one before it, continued from slot to slot."""

import torch
from torch import Tensor

from ostinato.kernels import dispatch
from ostinato.kernels.packed import Packed, read_slots, write_slots


def token_shift_ref(
    x: Tensor, mix: Tensor, last: Tensor, src: Tensor, dst: Tensor, starts: Tensor, longest: int
) -> Tensor:
    """y[i, t] = x[t] + (x[t - 1] - x[t]) mix[i], where x[-1] is what the slot remembers."""
    del longest
    filled = starts[1:] > starts[:-1]
    first, final = starts[:-1][filled].long(), starts[1:][filled].long() - 1
    remembered = read_slots(last, src)
    previous = torch.cat([x[:1], x[:-1]]).index_copy(0, first, remembered[filled].to(x.dtype))
    write_slots(last, dst, remembered.index_copy(0, torch.nonzero(filled).flatten(), x[final].to(last.dtype)))
    return (x.float() + (previous.float() - x.float()) * mix.unsqueeze(1)).to(x.dtype)


def _token_shift_meta(x: Tensor, mix: Tensor, *_: object) -> Tensor:
    return x.new_empty((mix.shape[0], *x.shape))


dispatch.define(
    "token_shift(Tensor x, Tensor mix, Tensor(a!) last, Tensor src, Tensor dst, Tensor starts, int longest) -> Tensor",
    reference=token_shift_ref,
    meta=_token_shift_meta,
)


def token_shift(x: Tensor, mix: Tensor, last: Tensor, batch: Packed) -> Tensor:
    """Moves every token towards the one before it, once per row of `mix`.

    x: [T, C] fp32, bf16 or fp16; mix: [n, C] fp32, 0 for the token itself, 1 for the one before; last: [slots, C], in
    x's dtype, updated in place to the last row of every sequence. Returns [n, T, C] in x's dtype. Raises TypeError,
    ValueError: operands that do not fit.

    Source: Peng et al. 2023 (RWKV), equations 11 to 13.
    """
    batch.check(x.shape[0])
    if last.dtype != x.dtype:
        raise TypeError(f"token_shift: x is {x.dtype}, its memory {last.dtype}")
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(f"token_shift: x must be float32, bfloat16 or float16, got {x.dtype}")
    if mix.dtype != torch.float32:
        raise TypeError(f"token_shift: mix must be float32, got {mix.dtype}")
    if not last.shape[1:] == mix.shape[1:] == x.shape[1:] != () or not last.is_contiguous():
        raise ValueError(
            f"token_shift: x {tuple(x.shape)}, mix {tuple(mix.shape)} and memory {tuple(last.shape)} do not fit, "
            "or the memory, which is updated in place, is not contiguous"
        )
    y: Tensor = dispatch.operators(x).token_shift(
        x, mix.contiguous(), last, batch.src, batch.dst, batch.starts, batch.longest
    )
    return y
