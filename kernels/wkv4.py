"""RWKV-4's attention: an average of all values so far, weighted by exponentials of their keys, which decay with age.

    y  = (a + e^(u + k) v) / (b + e^(u + k))
    a' = e^w a + e^k v        b' = e^w b + e^k

The exponentials overflow, so a and b are kept divided by e^p, where p is the largest exponent so far (a running
maximum), and the state is (a, b, p). After any token b >= 1, since the term with the largest exponent is 1: so b = 0
means exactly that nothing has been read. Then p stands for minus infinity, whatever it holds, and a slot of zeros is
the empty state.
"""

import torch
from torch import Tensor

from ostinato.kernels import dispatch
from ostinato.kernels.operands import check_float32, check_operands, check_shapes
from ostinato.kernels.packed import Packed
from ostinato.kernels.reference import token_by_token


def wkv4_ref(
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    bonus: Tensor,
    state: Tensor,
    src: Tensor,
    dst: Tensor,
    starts: Tensor,
    longest: int,
) -> Tensor:
    """The equations above, token by token, with the running maximum. Differentiable."""
    keys, values = k.float(), v.float()

    def advance(before: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        (a, b, p), key, value = before.unbind(1), keys[at], values[at]
        p = torch.where(b > 0, p, -torch.inf)
        top = torch.maximum(p, bonus + key)
        past, now = torch.exp(p - top), torch.exp(bonus + key - top)
        y = (past * a + now * value) / (past * b + now)
        top = torch.maximum(p + decay, key)
        past, now = torch.exp(p + decay - top), torch.exp(key - top)
        return torch.stack([past * a + now * value, past * b + now, top], dim=1), y

    return token_by_token(advance, keys[:0], state, src, dst, starts, longest)


def _wkv4_meta(k: Tensor, *_: object) -> Tensor:
    return k.new_empty(k.shape, dtype=torch.float32)


dispatch.define(
    "wkv4(Tensor k, Tensor v, Tensor decay, Tensor bonus, Tensor(a!) state, Tensor src, Tensor dst, Tensor starts, "
    "int longest) -> Tensor",
    reference=wkv4_ref,
    meta=_wkv4_meta,
)


def wkv4(k: Tensor, v: Tensor, decay: Tensor, bonus: Tensor, state: Tensor, batch: Packed) -> Tensor:
    """Runs RWKV-4's attention over packed sequences, in place by slot.

    k, v: [T, C] fp32, bf16 or fp16, each token contiguous, with any stride between tokens. decay: w, the natural
    logarithm of the decay, negative: [C] fp32; a checkpoint's time_decay is log(-w). bonus: u, [C] fp32. state:
    [slots, 3, C] fp32, contiguous, rows a, b, p; zeros are the empty state. Returns y: [T, C] fp32. Raises TypeError,
    ValueError: operands that do not fit.

    Source: Peng et al. 2023 (RWKV), section 3 and the appendix on the time-mixing block as an RNN cell.
    """
    batch.check(k.shape[0])
    channels = k.shape[1:]
    fits = (
        k.dim() == 2
        and v.shape == k.shape
        and decay.shape == bonus.shape == channels
        and state.shape[1:] == (3, *channels)
    )
    check_shapes("wkv4", fits, k=k, v=v, decay=decay, bonus=bonus, state=state)
    check_operands("wkv4", k=k, v=v)
    check_float32("wkv4", decay=decay, bonus=bonus, state=state)
    y: Tensor = dispatch.operators(k).wkv4(k, v, decay, bonus, state, batch.src, batch.dst, batch.starts, batch.longest)
    return y
