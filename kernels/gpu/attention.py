"""Attention over a sliding window, with a ring of keys and values by slot.

A program attends for a tile of rows, which are a sequence's tokens times the query heads that share one key head, and
walks over the tile's keys in blocks that are aligned to positions, so that a query meets the same blocks whatever it
shares its tile with. Positions before the call are loaded from the ring, the others from k and v; a row of the ring
that no query of the tile sees is never read. The ring is written by a launch of its own, after all have read it.

In a step the window is cut at fixed places into parts that run side by side and are combined afterwards: otherwise one
sequence with one key head would keep one processor busy and the others idle. The cuts round differently from a scan,
so the batch-invariant mode goes without: there a step has the tiles of a scan, and the bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ostinato.kernels.gpu.attention_launch import launch_attention, launch_combine
from ostinato.kernels.gpu.compile import CompileCase
from ostinato.kernels.gpu.ring import write_ring

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _meet(
    queries: tl.tensor,
    key_at: tl.tensor,
    value_at: tl.tensor,
    exists: tl.tensor,
    seen: tl.tensor,
    scale: tl.tensor,
    largest: tl.tensor,
    total: tl.tensor,
    result: tl.tensor,
    WIDEN: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Takes a block of keys and values into the running softmax (Milakov and Gimelshein 2018, section 3)."""
    key = tl.load(key_at, mask=exists, other=0.0)
    if WIDEN:
        key = key.to(tl.float32)
    scores = tl.dot(queries, key.T, input_precision="ieee") * (scale * LOG2_E)
    scores = tl.where(seen, scores, float("-inf"))
    higher = tl.maximum(largest, tl.max(scores, 1))
    shift = tl.where(higher == float("-inf"), 0.0, higher)
    weights = tl.exp2(scores - shift[:, None])
    shrink = tl.exp2(largest - shift)
    total = total * shrink + tl.sum(weights, 1)
    value = tl.load(value_at, mask=exists, other=0.0)
    result = tl.dot(weights.to(value.dtype), value, result * shrink[:, None], input_precision="ieee")
    return higher, total, result


@triton.jit(do_not_specialize=["scale"])
def window_attention_kernel(
    q: tl.tensor,
    far: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    past: tl.tensor,
    src: tl.tensor,
    starts: tl.tensor,
    y: tl.tensor,
    sums: tl.tensor,
    scale: tl.tensor,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    WIDTH: tl.constexpr,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
    Q_TOKEN: tl.constexpr,
    FAR_TOKEN: tl.constexpr,
    K_TOKEN: tl.constexpr,
    V_TOKEN: tl.constexpr,
    WIDEN: tl.constexpr,
    PART: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Grid (sequences times key heads, row tiles, parts). Q_TOKEN, FAR_TOKEN, K_TOKEN, V_TOKEN are strides of tokens.

    Where PARTS is 1, y is [T, H, D]. Otherwise it is [T, H, PARTS, D], not divided by the sum of weights, and
    sums [T, H, PARTS, 2] gets each part's largest score (in powers of two) and sum of weights.
    """
    SHARED: tl.constexpr = HEADS // GROUPS
    RECENT: tl.constexpr = WINDOW - SINKS
    sequence, group = tl.program_id(0) // GROUPS, tl.program_id(0) % GROUPS
    start = tl.load(starts + sequence).to(tl.int64)
    length = (tl.load(starts + sequence + 1) - start).to(tl.int32)
    first_token = tl.program_id(1) * ROWS // SHARED
    if first_token >= length:
        return
    slot = tl.load(src + sequence).to(tl.int64)
    read = tl.where(slot < 0, 0, tl.load(past + sequence).to(tl.int64))
    last_token = tl.minimum((tl.program_id(1) * ROWS + ROWS - 1) // SHARED, length - 1)
    # From here on positions count from `origin`, and are small.
    oldest = tl.maximum(read + first_token - (RECENT - 1), SINKS)
    origin = oldest // COLUMNS * COLUMNS
    begin, now = (oldest - origin).to(tl.int32), (read - origin).to(tl.int32)
    begin_row = ((oldest - SINKS) % RECENT).to(tl.int32)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    token, head = row // SHARED, group * SHARED + row % SHARED
    column, d = tl.arange(0, COLUMNS), tl.arange(0, BLOCK_D)
    inside, row_exists = (d < WIDTH)[None, :], token < length
    q_at = q + (start + token)[:, None] * Q_TOKEN + head[:, None] * WIDTH + d[None, :]
    queries = tl.load(q_at, mask=row_exists[:, None] & inside, other=0.0)
    if WIDEN:
        queries = queries.to(tl.float32)
    ring = slot * WINDOW * GROUPS * WIDTH + group * WIDTH + d[None, :]
    new = group * WIDTH + d[None, :]
    largest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    result = tl.zeros((ROWS, BLOCK_D), tl.float32)
    if SINKS > 0 and tl.program_id(2) == 0:
        far_at = far + (start + token)[:, None] * FAR_TOKEN + head[:, None] * WIDTH + d[None, :]
        distant = tl.load(far_at, mask=row_exists[:, None] & inside, other=0.0)
        if WIDEN:
            distant = distant.to(tl.float32)
        for block in range(0, SINKS, COLUMNS):
            position = (block + column).to(tl.int64)
            sink = position < tl.minimum(read + last_token + 1, SINKS)
            remembered = (sink & (position < read))[:, None] & inside
            ring_row, chunk_row = ring + position[:, None] * (GROUPS * WIDTH), (start + position - read)[:, None]
            key_at = tl.where(remembered, keys + ring_row, k + chunk_row * K_TOKEN + new)
            value_at = tl.where(remembered, values + ring_row, v + chunk_row * V_TOKEN + new)
            seen = sink[None, :] & (position[None, :] <= (read + token)[:, None])
            largest, total, result = _meet(
                distant, key_at, value_at, sink[:, None] & inside, seen, scale, largest, total, result, WIDEN
            )
    end = now + last_token + 1
    for block in range(tl.program_id(2) * PART, tl.minimum(end, (tl.program_id(2) + 1) * PART), COLUMNS):
        at = block + column
        remembered = ((at >= begin) & (at < now))[:, None] & inside
        fresh = ((at >= begin) & (at >= now) & (at < end))[:, None] & inside
        ring_row = ring + (SINKS + (begin_row + at - begin) % RECENT)[:, None] * (GROUPS * WIDTH)
        chunk_row = start + (at - now)[:, None]
        key_at = tl.where(remembered, keys + ring_row, k + chunk_row * K_TOKEN + new)
        value_at = tl.where(remembered, values + ring_row, v + chunk_row * V_TOKEN + new)
        back = (now + token)[:, None] - at[None, :]
        seen = (back >= 0) & (back < RECENT) & (at >= begin)[None, :]
        largest, total, result = _meet(
            queries, key_at, value_at, remembered | fresh, seen, scale, largest, total, result, WIDEN
        )
    out = ((start + token) * HEADS + head) * PARTS + tl.program_id(2)
    if PARTS == 1:
        result /= tl.where(row_exists, total, 1.0)[:, None]
    else:
        tl.store(sums + out * 2, largest, mask=row_exists)
        tl.store(sums + out * 2 + 1, total, mask=row_exists)
    tl.store(y + out[:, None] * WIDTH + d[None, :], result, mask=row_exists[:, None] & inside)


@triton.jit
def combine_parts_kernel(
    parts: tl.tensor,
    sums: tl.tensor,
    y: tl.tensor,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
) -> None:
    """Grid (tokens times heads). parts [T, H, PARTS, D], sums [T, H, PARTS, 2], y [T, H, D]; all contiguous."""
    at = tl.program_id(0).to(tl.int64)
    part, d = tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_D)
    exists = part < PARTS
    largest = tl.load(sums + (at * PARTS + part) * 2, mask=exists, other=float("-inf"))
    factor = tl.exp2(largest - tl.max(largest, 0))
    total = tl.sum(factor * tl.load(sums + (at * PARTS + part) * 2 + 1, mask=exists, other=0.0), 0)
    part_at = parts + (at * PARTS + part)[:, None] * WIDTH + d[None, :]
    rows = tl.load(part_at, mask=exists[:, None] & (d < WIDTH)[None, :], other=0.0)
    tl.store(y + at * WIDTH + d, tl.sum(factor[:, None] * rows, 0) / total, mask=d < WIDTH)


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    past: Tensor,
    src: Tensor,
    dst: Tensor,
    starts: Tensor,
    longest: int,
    scale: float,
    far: Tensor | None = None,
    sinks: int = 0,
) -> Tensor:
    """`ostinato::window_attention`: see `ostinato.kernels.attention`."""
    y = torch.empty(q.shape, dtype=torch.float32, device=q.device)
    if y.numel():
        far = q if far is None else far
        launch, rows = launch_attention(q, far, k, v, keys, longest, sinks), q.shape[1] // k.shape[1] * longest
        parts = launch.constexprs["PARTS"]
        grid = (src.numel() * k.shape[1], triton.cdiv(rows, launch.constexprs["ROWS"]), parts)
        partial, sums = (y, y) if parts == 1 else (y.new_empty((*y.shape[:2], parts, n)) for n in (y.shape[2], 2))
        window_attention_kernel[grid](
            q, far, k, v, keys, values, past, src, starts, partial, sums, scale, **launch.arguments()
        )
        if parts > 1:
            combine = launch_combine(y.shape[2], parts)
            combine_parts_kernel[(y.shape[0] * y.shape[1],)](partial, sums, y, **combine.arguments())
    write_ring(k, v, keys, values, past, src, dst, starts, sinks)
    return y


def compile_cases() -> list[CompileCase]:
    """RecurrentGemma-2b, where ten heads share a key head of 256, Samba with 18 heads of 128, and Bamba with sinks."""
    shapes = [(10, 1, 256, 0), (18, 18, 128, 0), (32, 8, 128, 4)]
    return [case for shape in shapes for dtype in _TYPES for case in _cases(*shape, dtype)]


_TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}


def _cases(heads: int, groups: int, width: int, sinks: int, dtype: torch.dtype) -> list[CompileCase]:
    """A window of 2048; q, k and v are parts of one projection."""
    name = f"window_attention {heads}/{groups}x{width} {_TYPES[dtype][1:]}" + (f" {sinks} sinks" if sinks else "")
    fused = torch.empty(1, heads + 2 * groups, width, dtype=dtype, device="meta")
    q, k, v = fused.split([heads, groups, groups], dim=1)
    keys = torch.empty(1, 2048, groups, width, dtype=dtype, device="meta")
    operands = dict.fromkeys(("q", "far", "k", "v", "keys", "values"), _TYPES[dtype])
    slots = dict.fromkeys(("past", "src", "dst", "starts"), "*i32")
    results = {"parts": "*fp32", "sums": "*fp32", "y": "*fp32", "scale": "fp32"}
    signature = operands | slots | results
    step, scan = (launch_attention(q, q, k, v, keys, longest, sinks) for longest in (1, 512))
    combine = launch_combine(width, step.constexprs["PARTS"])
    return [
        CompileCase.of(f"{name} step", window_attention_kernel, signature, step),
        CompileCase.of(f"{name} scan", window_attention_kernel, signature, scan),
        CompileCase.of(f"{name} combine", combine_parts_kernel, signature, combine),
    ]
