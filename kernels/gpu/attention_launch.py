"""Launch shapes of the attention kernels."""

import triton
from torch import Tensor

from ostinato.kernels.gpu.launch import Launch
from ostinato.kernels.gpu.mode import batch_invariant

_PART = 256  # positions: enough programs for one sequence, and few enough partial results
_ALL = 1 << 30


def launch_attention(q: Tensor, far: Tensor, k: Tensor, v: Tensor, keys: Tensor, longest: int, sinks: int) -> Launch:
    """In the batch-invariant mode nothing here depends on how many tokens there are."""
    (heads, width), (window, groups), widen = q.shape[1:], keys.shape[1:3], q.dtype != k.dtype
    step = longest <= 1 and not batch_invariant()
    scan_rows, scan_warps, columns, step_warps = _tile(width, 4 if widen else k.element_size(), sinks)
    reach = window - sinks + columns - 1  # of one query, from the start of its first block
    constexprs = {
        "HEADS": heads,
        "GROUPS": groups,
        "WIDTH": width,
        "WINDOW": window,
        "SINKS": sinks,
        "Q_TOKEN": q.stride(0),
        "FAR_TOKEN": far.stride(0),
        "K_TOKEN": k.stride(0),
        "V_TOKEN": v.stride(0),
        "WIDEN": widen,
        "PART": _PART if step else _ALL,
        "PARTS": triton.cdiv(reach, _PART) if step else 1,
        "ROWS": 16 if step else scan_rows,
        "COLUMNS": columns,
        "BLOCK_D": max(16, triton.next_power_of_2(width)),
    }
    return Launch(constexprs, num_warps=step_warps if step else scan_warps, num_stages=2)


def _tile(width: int, bytes_per_element: int, sinks: int) -> tuple[int, int, int, int]:
    """Rows and warps of a scan's tile, columns, and a step's warps: what the registers of every GPU hold."""
    if bytes_per_element == 2:
        return (64, 8, 64, 4) if width <= 128 else (64, 8, 32, 8)
    if width > 128:
        return 16, 4, 16, 8
    return (32, 8, 16, 8) if sinks else (32, 8, 32, 8)  # with sinks there is a second query


def launch_combine(width: int, parts: int) -> Launch:
    blocks = {"BLOCK_P": triton.next_power_of_2(parts), "BLOCK_D": triton.next_power_of_2(width)}
    return Launch({"WIDTH": width, "PARTS": parts} | blocks, num_warps=4)
