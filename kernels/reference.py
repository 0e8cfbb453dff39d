"""The loop over tokens that reference implementations share."""

from collections.abc import Callable

import torch
from torch import Tensor

from ostinato.kernels.packed import read_slots, write_slots

Advance = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def token_by_token(
    advance: Advance, empty: Tensor, state: Tensor, src: Tensor, dst: Tensor, starts: Tensor, longest: int
) -> Tensor:
    """Runs packed sequences side by side, one token of each at a time. Differentiable.

    `advance` takes the states [A, ...] fp32 of the A sequences that have another token, and in which rows [A] of the
    operands those tokens are; it returns the states after them and their outputs [A, ...]. `empty`: outputs of no
    tokens, [0, ...]. state: [slots, ...]; src, dst, starts, longest: see `ostinato.kernels.packed`. Returns the outputs
    [T, ...] of all tokens, in their order.
    """
    states, rows, order = read_slots(state, src).float(), [empty], [starts[:0].long()]
    for t in range(longest):
        active = torch.nonzero(starts[1:] - starts[:-1] > t).flatten()
        at = starts[:-1][active].long() + t
        after, row = advance(states[active], at)
        states = states.index_copy(0, active, after)
        rows.append(row)
        order.append(at)
    write_slots(state, dst, states)
    return torch.cat(rows)[torch.argsort(torch.cat(order))]
