"""The ring of a sliding window: what a call leaves in it. `ostinato.kernels.attention` says which row is whose."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ostinato.kernels.gpu.compile import CompileCase
from ostinato.kernels.gpu.launch import Launch


@triton.jit
def _copy_rows(
    ring: tl.tensor,
    fresh: tl.tensor,
    fresh_row: tl.tensor,
    old_row: tl.tensor,
    new_row: tl.tensor,
    kept: tl.tensor,
    new: tl.tensor,
) -> None:
    at = tl.where(kept, ring + old_row, fresh + fresh_row)
    tl.store(ring + new_row, tl.load(at, mask=kept | new), mask=kept | new)


@triton.jit
def write_ring_kernel(
    k: tl.tensor,
    v: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    past: tl.tensor,
    src: tl.tensor,
    dst: tl.tensor,
    starts: tl.tensor,
    ELEMENTS: tl.constexpr,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
    K_TOKEN: tl.constexpr,
    V_TOKEN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_E: tl.constexpr,
) -> None:
    """Grid (sequences, element blocks, shares of the window). ELEMENTS = G D.

    Writes the new positions, and, where dst is not src, copies the old ones that are still in the window. No program
    reads what another one writes: a destination is no other sequence's source.
    """
    sequence = tl.program_id(0)
    source, target = tl.load(src + sequence).to(tl.int64), tl.load(dst + sequence).to(tl.int64)
    if target < 0:
        return
    start = tl.load(starts + sequence).to(tl.int64)
    read = tl.where(source < 0, 0, tl.load(past + sequence).to(tl.int64))
    end = read + tl.load(starts + sequence + 1) - start
    missing = tl.where(source == target, read, 0)  # what is before it is in place already
    begin = tl.maximum(end - (WINDOW - SINKS), missing)
    element = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)[None, :]
    inside = element < ELEMENTS
    for first in range(begin + tl.program_id(2) * ROWS, end, tl.num_programs(2) * ROWS):
        position = first + tl.arange(0, ROWS)[:, None]
        row = tl.where(position < SINKS, position, SINKS + (position - SINKS) % (WINDOW - SINKS)) * ELEMENTS + element
        kept, new = inside & (position < read), inside & (position >= read) & (position < end)
        old_at, new_at = source * WINDOW * ELEMENTS + row, target * WINDOW * ELEMENTS + row
        token = start + position - read
        _copy_rows(keys, k, token * K_TOKEN + element, old_at, new_at, kept, new)
        _copy_rows(values, v, token * V_TOKEN + element, old_at, new_at, kept, new)
    for first in range(missing + tl.program_id(2) * ROWS, tl.minimum(begin, SINKS), tl.num_programs(2) * ROWS):
        position = first + tl.arange(0, ROWS)[:, None]
        sink = inside & (position < tl.minimum(begin, SINKS))
        kept, new = sink & (position < read), sink & (position >= read)
        row = position * ELEMENTS + element
        old_at, new_at = source * WINDOW * ELEMENTS + row, target * WINDOW * ELEMENTS + row
        token = start + position - read
        _copy_rows(keys, k, token * K_TOKEN + element, old_at, new_at, kept, new)
        _copy_rows(values, v, token * V_TOKEN + element, old_at, new_at, kept, new)


_SHARES = 8  # programs that copy one ring, where a fork has to


def write_ring(
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    past: Tensor,
    src: Tensor,
    dst: Tensor,
    starts: Tensor,
    sinks: int,
) -> None:
    """Leaves in the destinations' rings what later calls see; for the operands see `ostinato.kernels.attention`."""
    if src.numel():
        launch = _launch(k, v, keys, sinks)
        grid = (src.numel(), triton.cdiv(launch.constexprs["ELEMENTS"], launch.constexprs["BLOCK_E"]), _SHARES)
        write_ring_kernel[grid](k, v, keys, values, past, src, dst, starts, **launch.arguments())


def _launch(k: Tensor, v: Tensor, keys: Tensor, sinks: int) -> Launch:
    elements = keys.shape[2] * keys.shape[3]
    strides = {"K_TOKEN": k.stride(0), "V_TOKEN": v.stride(0)}
    blocks = {"ROWS": 8, "BLOCK_E": min(512, triton.next_power_of_2(elements))}
    return Launch({"ELEMENTS": elements, "WINDOW": keys.shape[1], "SINKS": sinks} | strides | blocks, num_warps=4)


def compile_cases() -> list[CompileCase]:
    """RecurrentGemma-2b, Samba, and Bamba with sinks, each with k and v as parts of one projection."""
    return [
        _case(10, 1, 256, torch.bfloat16, "bf16"),
        _case(18, 18, 128, torch.float32, "fp32"),
        _case(32, 8, 128, torch.bfloat16, "bf16", sinks=4),
    ]


def _case(heads: int, groups: int, width: int, dtype: torch.dtype, short: str, *, sinks: int = 0) -> CompileCase:
    fused = torch.empty(1, heads + 2 * groups, width, dtype=dtype, device="meta")
    _, k, v = fused.split([heads, groups, groups], dim=1)
    keys = torch.empty(1, 2048, groups, width, dtype=dtype, device="meta")
    operands = dict.fromkeys(("k", "v", "keys", "values"), f"*{short}")
    slots = dict.fromkeys(("past", "src", "dst", "starts"), "*i32")
    name = f"write_ring {groups}x{width} {short}" + (f" {sinks} sinks" if sinks else "")
    return CompileCase.of(name, write_ring_kernel, operands | slots, _launch(k, v, keys, sinks))
