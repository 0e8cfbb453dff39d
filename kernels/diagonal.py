"""The diagonal recurrence: every channel is a decaying sum of its own inputs.

    h' = exp(log_decay) h + x

    family                    x                          log_decay
    HGRN                      (1 - f) i                  log f
    RG-LRU (Griffin)          sqrt(1 - a^2) (gate u)     log a

Step and scan are the same operator: a step is the case where every sequence has one token.
"""

import torch
from torch import Tensor

from ostinato.kernels import dispatch
from ostinato.kernels.operands import check_float32, check_operands, check_shapes
from ostinato.kernels.packed import Packed
from ostinato.kernels.reference import token_by_token


def diagonal_ref(
    x: Tensor, log_decay: Tensor, state: Tensor, src: Tensor, dst: Tensor, starts: Tensor, longest: int
) -> Tensor:
    """The equation above, token by token. Differentiable."""
    inputs, decay = x.float(), log_decay.float().exp()

    def advance(h: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        h = decay[at] * h + inputs[at]
        return h, h

    return token_by_token(advance, inputs[:0], state, src, dst, starts, longest)


def _diagonal_meta(x: Tensor, *_: object) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.float32)


dispatch.define(
    "diagonal(Tensor x, Tensor log_decay, Tensor(a!) state, Tensor src, Tensor dst, Tensor starts, int longest) "
    "-> Tensor",
    reference=diagonal_ref,
    meta=_diagonal_meta,
)


def diagonal(x: Tensor, log_decay: Tensor, state: Tensor, batch: Packed) -> Tensor:
    """Runs the diagonal recurrence over packed sequences, in place by slot.

    x, log_decay (natural logarithm; -inf forgets everything): [T, C] fp32, bf16 or fp16, contiguous in the last
    dimension. state: [slots, C] fp32, contiguous. Returns h after every token: [T, C] fp32. Raises TypeError,
    ValueError: operands that do not fit.

    Sources: Qin et al. 2023 (HGRN), section 3; De et al. 2024 (Griffin), section 2.4, equation 4.
    """
    batch.check(x.shape[0])
    fits = x.dim() == 2 and log_decay.shape == x.shape and state.shape[1:] == x.shape[1:]
    check_shapes("diagonal", fits, x=x, log_decay=log_decay, state=state)
    check_operands("diagonal", x=x, log_decay=log_decay)
    check_float32("diagonal", state=state)
    h: Tensor = dispatch.operators(x).diagonal(x, log_decay, state, batch.src, batch.dst, batch.starts, batch.longest)
    return h
