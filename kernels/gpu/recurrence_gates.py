"""Logarithms of decays in a chunk, and their sums over spans of tokens.

A sum over a span is added up from its own terms. It is never a difference of two running sums, which would lose a mild
decay behind a strong one (and be inf - inf behind a decay of 0), and no exponential of a positive number is taken,
which would overflow. D(s, t) is the decay after token s up to token t.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ostinato.kernels.gpu.operands import Rows, load_tile, softplus


class Gates(NamedTuple):
    """What log D is made of: log_decay, or rate and step (and step_bias), or nothing."""

    log_decay: Rows | None
    rate: Tensor | None
    step: Rows | None
    step_bias: Tensor | None


@triton.jit
def load_steps(gates: Gates, tokens: tl.tensor, head: tl.tensor, known: tl.tensor) -> tl.tensor:
    """Mamba-2's step sizes [tokens, 1], 0 where not `known`."""
    steps = load_tile(gates.step, tokens, head, tl.arange(0, 1), known[:, None])
    if gates.step_bias is not None:
        steps = tl.where(known[:, None], softplus(steps + tl.load(gates.step_bias + head)), 0.0)
    return steps


@triton.jit
def load_gates(
    gates: Gates, tokens: tl.tensor, head: tl.tensor, known: tl.tensor, WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr
) -> tl.tensor:
    """log D [tokens, BLOCK_WIDTH] of WIDTH channels (1 for a scalar), 0 where not `known`."""
    if gates.log_decay is not None:
        columns = tl.arange(0, BLOCK_WIDTH)
        logs = load_tile(gates.log_decay, tokens, head, columns, known[:, None] & (columns < WIDTH)[None, :])
    elif gates.rate is not None:
        logs = load_steps(gates, tokens, head, known) * tl.load(gates.rate + head)
    else:
        logs = tl.zeros([tokens.shape[0], BLOCK_WIDTH], tl.float32)
    return logs


@triton.jit
def decays_upto(
    gates: Gates,
    first: tl.tensor,
    stop: tl.tensor,
    head: tl.tensor,
    LAG: tl.constexpr,
    CHUNK: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
) -> tl.tensor:
    """D(0, t - LAG) [C, BLOCK_WIDTH]: the decay from before the chunk to token t - LAG."""
    row = tl.arange(0, CHUNK)
    known = (first + row < stop) & (row >= LAG)
    return tl.exp(tl.cumsum(load_gates(gates, first + row - LAG, head, known, WIDTH, BLOCK_WIDTH), 0))


@triton.jit
def decays_after(
    gates: Gates,
    first: tl.tensor,
    stop: tl.tensor,
    head: tl.tensor,
    CHUNK: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
) -> tl.tensor:
    """D(t, C) [C, BLOCK_WIDTH]: the decay from token t to the end of its chunk."""
    row = tl.arange(0, CHUNK)
    known = (first + row + 1 < stop) & (row + 1 < CHUNK)
    logs = load_gates(gates, first + row + 1, head, known, WIDTH, BLOCK_WIDTH)
    return tl.exp(tl.cumsum(logs, 0, reverse=True))
