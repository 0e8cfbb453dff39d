"""How the tokens of a chunk act on each other: the part of a scan that needs no state, for all chunks at once.

With D(s, t) the decay after token s up to token t, a chunk's output and its delta rule need products such as
q_t . (D(s, t) k_s) for all s <= t: one [C, C] matrix per chunk and head. They are attention within the chunk. The delta
rule's triangular system is solved here too (the WY form: Yang et al. 2024, Parallelizing Linear Transformers with the
Delta Rule, section 3.2).
"""

import triton
import triton.language as tl

from ostinato.kernels.gpu.operands import Rows, cast, dot, load_keys, load_tile
from ostinato.kernels.gpu.recurrence_gates import Gates, load_gates

BLOCK = tl.constexpr(16)  # tokens of a vector decay that are multiplied out pair by pair


@triton.jit
def pairs_kernel(
    q: Rows,
    k: Rows,
    a: Rows,
    b: Rows,
    beta: Rows,
    gates: Gates,
    bonus: tl.tensor,
    starts: tl.tensor,
    pairs: tl.tensor,
    tokens_in_all: tl.tensor,
    scale: tl.tensor,
    HEADS: tl.constexpr,
    KEYS: tl.constexpr,
    DECAY_WIDTH: tl.constexpr,
    NORMALIZE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    """One program per (chunk, head, sequence) fills pairs [matrices, T, HEADS, CHUNK], row t of each matrix.

    Without a delta rule, the matrix of outputs alone: q k. With beta also (I + beta k k)^-1 beta; with a and b also
    q b, (I - a b)^-1 and a k. Rows a, and rows q where there is a bonus, see the state before their own token.
    """
    head, sequence = tl.program_id(1), tl.program_id(2)
    first = tl.load(starts + sequence) + tl.program_id(0) * CHUNK
    stop = tl.load(starts + sequence + 1)
    if first >= stop:
        return
    row, keys = tl.arange(0, CHUNK), tl.arange(0, BLOCK_KEYS)
    tokens, known = first + row, first + row < stop
    inside = known[:, None] & (keys < KEYS)[None, :]
    diagonal = row[:, None] == row[None, :]
    query = load_keys(q, tokens, head, keys, inside, NORMALIZE) * scale
    if bonus is not None:
        outputs = products(query, k, gates, first, stop, head, 1, NORMALIZE, KEYS, DECAY_WIDTH, DTYPE, PRECISION)
        key = load_keys(k, tokens, head, keys, inside, NORMALIZE)
        bonuses = tl.load(bonus + head * KEYS + keys, mask=keys < KEYS, other=0.0)
        outputs = tl.where(diagonal, tl.sum(query * key * bonuses[None, :], 1)[:, None], outputs)
    else:
        outputs = products(query, k, gates, first, stop, head, 0, NORMALIZE, KEYS, DECAY_WIDTH, DTYPE, PRECISION)
    row_stride = HEADS * CHUNK
    cells = pairs + tokens.to(tl.int64)[:, None] * row_stride + head * CHUNK + row[None, :]
    matrix = tokens_in_all.to(tl.int64) * row_stride
    tl.store(cells, cast(outputs, DTYPE), mask=known[:, None])
    if beta is not None:
        betas = load_tile(beta, tokens, head, tl.arange(0, 1), known[:, None])
        key = load_keys(k, tokens, head, keys, inside, NORMALIZE)
        seen = products(key * betas, k, gates, first, stop, head, 0, NORMALIZE, KEYS, DECAY_WIDTH, DTYPE, PRECISION)
        solved = inverse(tl.where(diagonal, 0.0, -seen)) * tl.trans(betas)
        tl.store(cells + matrix, cast(solved, DTYPE), mask=known[:, None])
    if a is not None:
        outputs = products(query, b, gates, first, stop, head, 0, False, KEYS, DECAY_WIDTH, DTYPE, PRECISION)
        tl.store(cells + matrix, cast(outputs, DTYPE), mask=known[:, None])
        erased = load_tile(a, tokens, head, keys, inside)
        seen = products(erased, b, gates, first, stop, head, 1, False, KEYS, DECAY_WIDTH, DTYPE, PRECISION)
        tl.store(cells + 2 * matrix, cast(inverse(seen), DTYPE), mask=known[:, None])
        seen = products(erased, k, gates, first, stop, head, 1, NORMALIZE, KEYS, DECAY_WIDTH, DTYPE, PRECISION)
        tl.store(cells + 3 * matrix, cast(seen, DTYPE), mask=known[:, None])


@triton.jit
def products(
    x: tl.tensor,
    y: Rows,
    gates: Gates,
    first: tl.tensor,
    stop: tl.tensor,
    head: tl.tensor,
    LAG: tl.constexpr,
    NORMALIZE: tl.constexpr,
    KEYS: tl.constexpr,
    DECAY_WIDTH: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tl.tensor:
    """[C, C]: x_t . (D(s, t - LAG) y_s) for s <= t - LAG, and 0 for other s. x [C, keys]."""
    CHUNK: tl.constexpr = x.shape[0]
    row = tl.arange(0, CHUNK)
    keys = tl.arange(0, x.shape[1])
    known = first + row < stop
    other = load_keys(y, first + row, head, keys, known[:, None] & (keys < KEYS)[None, :], NORMALIZE)
    if DECAY_WIDTH > 1:
        near, far, result = block_products(x, y, gates, first, stop, head, LAG, NORMALIZE, KEYS)
        result = chunk_products(x * near, other, far, result, gates, first, stop, head, KEYS, DTYPE, PRECISION)
    else:
        lagged = load_gates(gates, first + row - LAG, head, known & (row >= LAG), 1, 1)
        spans = tl.where(row[:, None] - LAG > row[None, :], lagged, 0.0)
        result = dot(x, tl.trans(other), DTYPE, PRECISION) * tl.exp(tl.cumsum(spans, 0))
        result = tl.where(row[:, None] - LAG >= row[None, :], result, 0.0)
    return result


@triton.jit
def block_products(
    x: tl.tensor,
    y: Rows,
    gates: Gates,
    first: tl.tensor,
    stop: tl.tensor,
    head: tl.tensor,
    LAG: tl.constexpr,
    NORMALIZE: tl.constexpr,
    KEYS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """`products` for pairs in the same block of a vector decay, and the decays that tie blocks together.

    Going back through the block, `near` is the decay from s to t - LAG; in the end it is from before the block to
    t - LAG. `far` becomes the decay from t to the end of its block. Both are [C, keys].
    """
    CHUNK: tl.constexpr = x.shape[0]
    row, keys = tl.arange(0, CHUNK), tl.arange(0, x.shape[1])
    in_block = row % BLOCK
    near, far = tl.full(x.shape, 1.0, tl.float32), tl.full(x.shape, 1.0, tl.float32)
    result = tl.zeros([CHUNK, CHUNK], tl.float32)
    for back in range(BLOCK):
        s = BLOCK - 1 - back
        partner = row - in_block + s
        known = first + partner < stop
        other = load_keys(y, first + partner, head, keys, known[:, None] & (keys < KEYS)[None, :], NORMALIZE)
        known = (first + partner + 1 < stop) & (partner + 1 < row - in_block + BLOCK)
        decay = tl.exp(load_gates(gates, first + partner + 1, head, known, KEYS, x.shape[1]))
        near = tl.where((in_block - LAG > s)[:, None], near * decay, near)
        far = tl.where((in_block <= s)[:, None], far * decay, far)
        here = (row[None, :] == partner[:, None]) & (in_block - LAG >= s)[:, None]
        result = tl.where(here, tl.sum(x * near * other, 1)[:, None], result)
    entry = tl.exp(load_gates(gates, first + row - in_block, head, first + row < stop, KEYS, x.shape[1]))
    near = tl.where((in_block >= LAG)[:, None], near * entry, near)
    return near, far, result


@triton.jit
def chunk_products(
    x: tl.tensor,
    y: tl.tensor,
    far: tl.tensor,
    result: tl.tensor,
    gates: Gates,
    first: tl.tensor,
    stop: tl.tensor,
    head: tl.tensor,
    KEYS: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
) -> tl.tensor:
    """Adds the pairs of different blocks to `result`, one block of rows after the other. x holds `near`."""
    CHUNK: tl.constexpr = x.shape[0]
    row = tl.arange(0, CHUNK)
    known = (first + row < stop) & (row % BLOCK == 0)
    whole = far * tl.exp(load_gates(gates, first + row, head, known, KEYS, x.shape[1]))
    reach = tl.zeros(x.shape, tl.float32)  # from s to the end of the block before the one in turn
    for block in tl.static_range(1, CHUNK // BLOCK):
        passed = tl.sum(tl.where(row[:, None] == (block - 1) * BLOCK, whole, 0.0), 0)
        reach = tl.where((row // BLOCK == block - 1)[:, None], far, reach * passed[None, :])
        between = dot(x, tl.trans(y * reach), DTYPE, PRECISION)
        result += tl.where((row // BLOCK == block)[:, None], between, 0.0)
    return result


@triton.jit
def inverse(lower: tl.tensor) -> tl.tensor:
    """(I - lower)^-1 for a strictly lower triangular [C, C]: each row is its own unit plus what rows before it give.

    Substitution row by row stays accurate where a product of powers, or of I + lower^2^n, would cancel.
    """
    row = tl.arange(0, lower.shape[0])
    result = tl.where(row[:, None] == row[None, :], 1.0, 0.0)
    for t in range(1, lower.shape[0]):
        weights = tl.sum(tl.where(row[:, None] == t, lower, 0.0), 0)
        given = tl.sum(weights[:, None] * result, 0)
        result += tl.where(row[:, None] == t, given[None, :], 0.0)
    return result
