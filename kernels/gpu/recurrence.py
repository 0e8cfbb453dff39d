"""The recurrence on a GPU: which kernels run, and with what launch shapes.

A call is either one launch that goes token by token, or two that go chunk by chunk: one that needs no state, for all
chunks at once, and one that carries the state.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ostinato.kernels.gpu.mode import batch_invariant
from ostinato.kernels.gpu.operands import dot_dtype, dot_precision, rows
from ostinato.kernels.gpu.recurrence_gates import Gates
from ostinato.kernels.gpu.recurrence_launch import Launch, padded
from ostinato.kernels.gpu.recurrence_loop import loop_kernel
from ostinato.kernels.gpu.recurrence_pairs import pairs_kernel
from ostinato.kernels.gpu.recurrence_scan import scan_kernel

LOOP_TOKENS = 16  # up to this length a chunk would be mostly padding
_SCAN_WARPS = 8
_STAGES = 1  # loads ahead of time would take the registers that the tiles need


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """The arguments of `ostinato.kernels.recurrence.recurrence`, with its batch taken apart."""

    q: Tensor
    k: Tensor
    v: Tensor
    state: Tensor
    src: Tensor
    dst: Tensor
    starts: Tensor
    longest: int
    log_decay: Tensor | None = None
    rate: Tensor | None = None
    step: Tensor | None = None
    step_bias: Tensor | None = None
    beta: Tensor | None = None
    a: Tensor | None = None
    b: Tensor | None = None
    bonus: Tensor | None = None
    skip: Tensor | None = None
    gate: Tensor | None = None
    normalize: bool = False
    scale: float = 1.0

    @property
    def tokens(self) -> int:
        return self.q.shape[0]

    @property
    def heads(self) -> int:
        return self.state.shape[1]

    @property
    def values(self) -> int:
        return self.state.shape[2]

    @property
    def keys(self) -> int:
        return self.state.shape[3]

    @property
    def matrix_decay(self) -> bool:
        return self.rate is not None and self.rate.dim() == 3

    @property
    def vector_decay(self) -> bool:
        return self.log_decay is not None and self.log_decay.dim() == 3


def recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    src: Tensor,
    dst: Tensor,
    starts: Tensor,
    longest: int,
    *,
    log_decay: Tensor | None = None,
    rate: Tensor | None = None,
    step: Tensor | None = None,
    step_bias: Tensor | None = None,
    beta: Tensor | None = None,
    a: Tensor | None = None,
    b: Tensor | None = None,
    bonus: Tensor | None = None,
    skip: Tensor | None = None,
    gate: Tensor | None = None,
    normalize: bool = False,
    scale: float = 1.0,
) -> Tensor:
    """`ostinato.kernels.recurrence.recurrence` in Triton, with its batch taken apart; arguments have been checked."""
    call = Call(
        q=q, k=k, v=v, state=state, src=src, dst=dst, starts=starts, longest=longest, log_decay=log_decay, rate=rate,
        step=step, step_bias=step_bias, beta=beta, a=a, b=b, bonus=bonus, skip=skip, gate=gate, normalize=normalize,
        scale=scale,
    )  # fmt: skip
    y = torch.empty((call.tokens, call.heads, call.values), dtype=torch.float32, device=q.device)
    for launch in launches(call, y):
        launch.run()
    return y


def launches(call: Call, y: Tensor) -> list[Launch]:
    """What to launch for `call`, in order. Nothing is read here: tensors may be on the meta device."""
    if batch_invariant() or call.matrix_decay or call.longest <= LOOP_TOKENS or _too_wide(call):
        return [_loop(call, y)]
    chunk = _chunk(call)
    matrices = 4 if call.a is not None else 2 if call.beta is not None else 1
    dtype = dot_dtype(call.q, call.k, call.v)
    pairs = torch.empty((matrices, call.tokens, call.heads, chunk), dtype=dtype, device=y.device)
    return [_pairs(call, pairs), _scan(call, pairs, y)]


def _loop(call: Call, y: Tensor) -> Launch:
    block_values, warps = _loop_shape(call)
    names = ("q", "k", "v", "log_decay", "step", "beta", "a", "b", "gate")
    arguments = {
        **{name: rows(getattr(call, name), call.heads) for name in names},
        **{name: _contiguous(getattr(call, name)) for name in ("rate", "step_bias", "bonus", "skip")},
        **{name: getattr(call, name) for name in ("state", "src", "dst", "starts")},
        "y": y,
        "scale": call.scale,
        **_sizes(call),
        "STEP_WIDTH": call.values if call.matrix_decay else 1,
        "SKIP_WIDTH": _skip_width(call),
        "ROUND": batch_invariant(),
        "BLOCK_VALUES": block_values,
        "BLOCK_KEYS": padded(call.keys),
    }
    grid = (triton.cdiv(call.values, block_values), call.heads, call.src.shape[0])
    return Launch(loop_kernel, grid, arguments, warps, _STAGES)


def _pairs(call: Call, pairs: Tensor) -> Launch:
    arguments = {
        **{name: rows(getattr(call, name), call.heads) for name in ("q", "k", "a", "b", "beta")},
        "gates": _gates(call),
        "bonus": _contiguous(call.bonus),
        "starts": call.starts,
        "pairs": pairs,
        "tokens_in_all": call.tokens,
        "scale": call.scale,
        **_sizes(call),
        **_dots(call, pairs),
    }
    chunks = triton.cdiv(call.longest, pairs.shape[-1])
    return Launch(pairs_kernel, (chunks, call.heads, call.src.shape[0]), arguments, _pairs_warps(call), _STAGES)


def _scan(call: Call, pairs: Tensor, y: Tensor) -> Launch:
    block_values = _scan_values(call)
    arguments = {
        **{name: rows(getattr(call, name), call.heads) for name in ("q", "k", "v", "a", "b", "gate")},
        **{name: getattr(call, name) for name in ("state", "src", "dst", "starts")},
        "gates": _gates(call),
        "skip": _contiguous(call.skip),
        "pairs": pairs,
        "tokens_in_all": call.tokens,
        "y": y,
        "scale": call.scale,
        **_sizes(call),
        **_dots(call, pairs),
        "BLOCK_DECAYS": padded(call.keys, least=16) if call.vector_decay else 1,
        "SKIP_WIDTH": _skip_width(call),
        "BETA": call.beta is not None,
        "BONUS": call.bonus is not None,
        "BLOCK_VALUES": block_values,
    }
    grid = (triton.cdiv(call.values, block_values), call.heads, call.src.shape[0])
    return Launch(scan_kernel, grid, arguments, _SCAN_WARPS, _STAGES)


def _sizes(call: Call) -> dict[str, Any]:
    return {
        "HEADS": call.heads,
        "VALUES": call.values,
        "KEYS": call.keys,
        "DECAY_WIDTH": call.keys if call.vector_decay else 1,
        "NORMALIZE": call.normalize,
    }


def _dots(call: Call, pairs: Tensor) -> dict[str, Any]:
    return {
        "CHUNK": pairs.shape[-1],
        "BLOCK_KEYS": padded(call.keys, least=16),
        "DTYPE": tl.bfloat16 if pairs.dtype == torch.bfloat16 else tl.float32,
        "PRECISION": dot_precision(call.q, call.k, call.v),
    }


def _gates(call: Call) -> Gates:
    step, log_decay = rows(call.step, call.heads), rows(call.log_decay, call.heads)
    return Gates(log_decay, _contiguous(call.rate), step, _contiguous(call.step_bias))


def _skip_width(call: Call) -> int:
    return call.values if call.skip is not None and call.skip.dim() == 2 else 1


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


# Launch shapes keep tiles in registers: at the shapes of `recurrence_cases` nothing is spilled.


def _loop_shape(call: Call) -> tuple[int, int]:
    """Values of a program that goes token by token, and its warps: 16 cells of the state for each thread."""
    block_keys = padded(call.keys)
    most = 8 if call.a is not None else max(8, min(32, 2048 // block_keys))  # RWKV-7's larger tiles spill on sm_100
    block_values = min(padded(call.values), most)
    return block_values, max(1, min(4, block_values * block_keys // 512))


def _wide(call: Call) -> bool:
    """Whether tiles are multiplied in fp32, which takes four times the registers of bf16."""
    return dot_dtype(call.q, call.k, call.v) == torch.float32


def _too_wide(call: Call) -> bool:
    """Whether even the smallest tiles do not fit into registers. In fp32 chunks gain little: no matrix unit has it."""
    most = 32 if call.a is not None else 64 if call.beta is not None else 256
    return _wide(call) and padded(call.keys) > most


def _chunk(call: Call) -> int:
    """Tokens of a chunk, by how many tiles [chunk, keys] a form holds at a time."""
    cells = 2048 if call.a is not None else 4096 if call.beta is not None or call.vector_decay else 8192
    return max(16, min(64, cells // (4 if _wide(call) else 1) // padded(call.keys)))


def _pairs_warps(call: Call) -> int:
    return 8 if call.a is not None or _chunk(call) * padded(call.keys) * (2 if call.vector_decay else 1) > 4096 else 4


def _scan_values(call: Call) -> int:
    """Values of a program that carries the state [values, keys]."""
    more_tiles = call.vector_decay or call.beta is not None or call.a is not None
    return 16 if _wide(call) or padded(call.keys) > (32 if more_tiles else 256) else 32
