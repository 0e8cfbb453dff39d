"""The recurrence chunk by chunk: the part of a scan that carries the state, after `recurrence_pairs`.

For a chunk that starts from state S, with D(0, t) the decay from before the chunk to token t, D(t, C) from t to its
end, and the matrices of `recurrence_pairs` in brackets:

    none     u = v
    beta     u = [(I + beta k k)^-1 beta] (v - S D(0, t) k_t)
    a, b     u = v,  r = [(I - a b)^-1] (S D(0, t - 1) a_t + [a k] v)
    y_t = S D(0, t) q_t + [q k] u + [q b] r
    S' = D(0, C) S + sum_t u_t (D(t, C) k_t)^T + r_t (D(t, C) b_t)^T

which is the recurrence written out: Yang et al. 2023 (GLA), section 4; Yang et al. 2024 (Gated DeltaNet), section 3.3.
"""

import triton
import triton.language as tl

from ostinato.kernels.gpu.operands import Rows, cast, dot, load_keys, load_tile, silu, state_mask
from ostinato.kernels.gpu.recurrence_gates import Gates, decays_after, decays_upto, load_gates, load_steps


# One program walks through all chunks of its sequence with its rows of the state in registers. That spares a pool of
# chunk states in memory and a launch between chunks; in exchange a single long prompt uses no more programs than it has
# heads times tiles of values.
@triton.jit
def scan_kernel(
    q: Rows,
    k: Rows,
    v: Rows,
    a: Rows,
    b: Rows,
    gate: Rows,
    gates: Gates,
    skip: tl.tensor,
    pairs: tl.tensor,
    tokens_in_all: tl.tensor,
    state: tl.tensor,
    src: tl.tensor,
    dst: tl.tensor,
    starts: tl.tensor,
    y: tl.tensor,
    scale: tl.tensor,
    HEADS: tl.constexpr,
    VALUES: tl.constexpr,
    KEYS: tl.constexpr,
    DECAY_WIDTH: tl.constexpr,
    BLOCK_DECAYS: tl.constexpr,
    SKIP_WIDTH: tl.constexpr,
    BETA: tl.constexpr,
    BONUS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_VALUES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """One program per (values, head, sequence). It alone reads and writes its rows of a state, so in place is safe."""
    head, sequence = tl.program_id(1), tl.program_id(2)
    values, keys = tl.program_id(0) * BLOCK_VALUES + tl.arange(0, BLOCK_VALUES), tl.arange(0, BLOCK_KEYS)
    in_values, in_keys, row = values < VALUES, keys < KEYS, tl.arange(0, CHUNK)
    cells = values[:, None] * KEYS + keys[None, :]
    source, target = tl.load(src + sequence).to(tl.int64), tl.load(dst + sequence).to(tl.int64)
    start = state + (source * HEADS + head) * (VALUES * KEYS)
    memory = tl.load(start + cells, mask=state_mask(source, values, keys, VALUES, KEYS), other=0.0).to(tl.float32)
    stop = tl.load(starts + sequence + 1)
    matrix = tokens_in_all.to(tl.int64) * (HEADS * CHUNK)
    for first in range(tl.load(starts + sequence), stop, CHUNK):
        tokens, known = first + row, first + row < stop
        in_rows, in_outputs = known[:, None] & in_keys[None, :], known[:, None] & in_values[None, :]
        x = load_tile(v, tokens, head, values, in_outputs)
        # Transposed, as [values, C], so that the state is the left factor, which needs no detour by shared memory.
        update = tl.trans(x * load_steps(gates, tokens, head, known) if gates.rate is not None else x)
        cell = pairs + tokens.to(tl.int64)[None, :] * (HEADS * CHUNK) + head * CHUNK + row[:, None]
        upto = decays_upto(gates, first, stop, head, BONUS, CHUNK, DECAY_WIDTH, BLOCK_DECAYS)
        query = load_keys(q, tokens, head, keys, in_rows, NORMALIZE) * (upto * scale)
        out = dot(memory, tl.trans(query), DTYPE, PRECISION)
        if BETA:
            key = load_keys(k, tokens, head, keys, in_rows, NORMALIZE) * upto
            update -= dot(memory, tl.trans(key), DTYPE, PRECISION)
            solved = tl.load(cell + matrix, mask=known[None, :], other=0.0)
            update = dot(update, solved, DTYPE, PRECISION)
        out += dot(update, tl.load(cell, mask=known[None, :], other=0.0), DTYPE, PRECISION)
        if a is not None:
            before = decays_upto(gates, first, stop, head, 1, CHUNK, DECAY_WIDTH, BLOCK_DECAYS)
            erased = load_tile(a, tokens, head, keys, in_rows) * before
            removed = dot(memory, tl.trans(erased), DTYPE, PRECISION)
            seen = tl.load(cell + 3 * matrix, mask=known[None, :], other=0.0)
            removed += dot(update, seen, DTYPE, PRECISION)
            solved = tl.load(cell + 2 * matrix, mask=known[None, :], other=0.0)
            removed = dot(removed, solved, DTYPE, PRECISION)
            out += dot(removed, tl.load(cell + matrix, mask=known[None, :], other=0.0), DTYPE, PRECISION)
        after = decays_after(gates, first, stop, head, CHUNK, DECAY_WIDTH, BLOCK_DECAYS)
        memory *= tl.exp(tl.sum(load_gates(gates, tokens, head, known, DECAY_WIDTH, BLOCK_DECAYS), 0))[None, :]
        key = load_keys(k, tokens, head, keys, in_rows, NORMALIZE) * after
        memory += dot(update, key, DTYPE, PRECISION)
        if a is not None:
            memory += dot(removed, load_tile(b, tokens, head, keys, in_rows) * after, DTYPE, PRECISION)
        result = tl.trans(out)
        if skip is not None:
            skips = tl.load(skip + head * SKIP_WIDTH + values * (SKIP_WIDTH > 1), mask=in_values, other=0.0)
            result += x * skips[None, :]
        if gate is not None:
            result *= silu(load_tile(gate, tokens, head, values, in_outputs))
        at = (tokens.to(tl.int64) * HEADS + head)[:, None] * VALUES + values[None, :]
        tl.store(y + at, result, mask=in_outputs)
    start = state + (target * HEADS + head) * (VALUES * KEYS)
    tl.store(start + cells, cast(memory, state.dtype.element_ty), mask=state_mask(target, values, keys, VALUES, KEYS))
