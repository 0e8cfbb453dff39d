"""The recurrence token by token: a step, short sequences, Mamba's matrix decay, and batch-invariant mode."""

import triton
import triton.language as tl

from ostinato.kernels.gpu.operands import Rows, cast, load_row, silu, softplus, state_mask, unit


# In batch-invariant mode the order of every sum must not depend on the batch. It follows from the layout of the state's
# tile, and so from the sizes: how operands are strided and aligned changes how they are loaded, nothing else.
@triton.jit
def loop_kernel(
    q: Rows,
    k: Rows,
    v: Rows,
    log_decay: Rows,
    step: Rows,
    beta: Rows,
    a: Rows,
    b: Rows,
    gate: Rows,
    rate: tl.tensor,
    step_bias: tl.tensor,
    bonus: tl.tensor,
    skip: tl.tensor,
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
    STEP_WIDTH: tl.constexpr,
    SKIP_WIDTH: tl.constexpr,
    NORMALIZE: tl.constexpr,
    ROUND: tl.constexpr,
    BLOCK_VALUES: tl.constexpr,
    BLOCK_KEYS: tl.constexpr,
) -> None:
    """One program per (values, head, sequence). It alone reads and writes its rows of a state, so in place is safe.

    Absent operands are None. DECAY_WIDTH is 1 or KEYS, STEP_WIDTH and SKIP_WIDTH are 1 or VALUES. With ROUND the state
    takes its pool's precision after every token, as if each were a call of its own.
    """
    head, sequence = tl.program_id(1), tl.program_id(2)
    values, keys = tl.program_id(0) * BLOCK_VALUES + tl.arange(0, BLOCK_VALUES), tl.arange(0, BLOCK_KEYS)
    in_values, in_keys = values < VALUES, keys < KEYS
    cells = values[:, None] * KEYS + keys[None, :]
    source, target = tl.load(src + sequence).to(tl.int64), tl.load(dst + sequence).to(tl.int64)
    start = state + (source * HEADS + head) * (VALUES * KEYS)
    memory = tl.load(start + cells, mask=state_mask(source, values, keys, VALUES, KEYS), other=0.0).to(tl.float32)
    if rate is not None:
        if STEP_WIDTH == 1:
            rates = tl.load(rate + head)
        else:
            rates = tl.load(
                rate + head * (VALUES * KEYS) + cells, mask=state_mask(0, values, keys, VALUES, KEYS), other=0.0
            )
        if step_bias is not None:
            biases = tl.load(step_bias + head * STEP_WIDTH + values * (STEP_WIDTH > 1), mask=in_values, other=0.0)
    if bonus is not None:
        bonuses = tl.load(bonus + head * KEYS + keys, mask=in_keys, other=0.0)
    if skip is not None:
        skips = tl.load(skip + head * SKIP_WIDTH + values * (SKIP_WIDTH > 1), mask=in_values, other=0.0)
    first, stop = tl.load(starts + sequence).to(tl.int64), tl.load(starts + sequence + 1).to(tl.int64)
    for token in range(first, stop):
        query, key = load_row(q, token, head, keys, in_keys), load_row(k, token, head, keys, in_keys)
        if NORMALIZE:
            query, key = unit(query), unit(key)
        query *= scale
        x = load_row(v, token, head, values, in_values)
        value, before = x, memory
        if a is not None:
            removed = tl.sum(memory * load_row(a, token, head, keys, in_keys)[None, :], 1)
        if rate is not None:
            steps = load_row(step, token, head, values * (STEP_WIDTH > 1), in_values)
            if step_bias is not None:
                steps = softplus(steps + biases)
            value = x * steps
            memory *= tl.exp(steps[:, None] * rates)
        if log_decay is not None:
            memory *= tl.exp(load_row(log_decay, token, head, keys * (DECAY_WIDTH > 1), in_keys))[None, :]
        if beta is not None:
            recalled = tl.sum(memory * key[None, :], 1)
            value = (x - recalled) * load_row(beta, token, head, values * 0, in_values)
        memory += value[:, None] * key[None, :]
        if a is not None:
            memory += removed[:, None] * load_row(b, token, head, keys, in_keys)[None, :]
        read = before + value[:, None] * (key * bonuses)[None, :] if bonus is not None else memory
        out = tl.sum(read * query[None, :], 1)
        if skip is not None:
            out += x * skips
        if gate is not None:
            out *= silu(load_row(gate, token, head, values, in_values))
        tl.store(y + (token * HEADS + head) * VALUES + values, out, mask=in_values)
        if ROUND:
            memory = cast(memory, state.dtype.element_ty).to(tl.float32)
    start = state + (target * HEADS + head) * (VALUES * KEYS)
    tl.store(start + cells, cast(memory, state.dtype.element_ty), mask=state_mask(target, values, keys, VALUES, KEYS))
