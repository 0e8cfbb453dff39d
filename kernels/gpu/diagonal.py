"""The diagonal recurrence: one program per sequence and block of channels, which are all independent."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ostinato.kernels.gpu.compile import CompileCase
from ostinato.kernels.gpu.launch import Launch

# 4 channels a thread, so that a step of one sequence still occupies many multiprocessors. No channel has two threads,
# which could store to a slot before the other one has read it.
BLOCK, WARPS = 128, 1


@triton.jit
def diagonal_kernel(
    x: tl.tensor,
    log_decay: tl.tensor,
    state: tl.tensor,
    y: tl.tensor,
    src: tl.tensor,
    dst: tl.tensor,
    starts: tl.tensor,
    CHANNELS: tl.constexpr,
    X_TOKEN: tl.constexpr,
    DECAY_TOKEN: tl.constexpr,
    STAGES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Grid (blocks of channels, sequences). X_TOKEN and DECAY_TOKEN are strides; y and state are contiguous."""
    sequence, channel = tl.program_id(1), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < CHANNELS
    source, target = tl.load(src + sequence).to(tl.int64), tl.load(dst + sequence).to(tl.int64)
    first, last = tl.load(starts + sequence).to(tl.int64), tl.load(starts + sequence + 1).to(tl.int64)
    known, kept = channel < tl.where(source >= 0, CHANNELS, 0), channel < tl.where(target >= 0, CHANNELS, 0)
    h = tl.load(state + source * CHANNELS + channel, mask=known, other=0.0)
    x += first * X_TOKEN + channel
    log_decay += first * DECAY_TOKEN + channel
    y += first * CHANNELS + channel
    for _ in tl.range(0, last - first, num_stages=STAGES):
        decay = tl.exp(tl.load(log_decay, mask=inside, other=0.0).to(tl.float32))
        h = decay * h + tl.load(x, mask=inside, other=0.0).to(tl.float32)
        tl.store(y, h, mask=inside)
        x += X_TOKEN
        log_decay += DECAY_TOKEN
        y += CHANNELS
    tl.store(state + target * CHANNELS + channel, h, mask=kept)


def diagonal(
    x: Tensor, log_decay: Tensor, state: Tensor, src: Tensor, dst: Tensor, starts: Tensor, longest: int
) -> Tensor:
    """`ostinato::diagonal`: see `ostinato.kernels.diagonal`."""
    channels = state.shape[1]
    y = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    if src.numel() and channels:
        launch = _launch(channels, (x.stride(0), log_decay.stride(0)), longest)
        grid = (triton.cdiv(channels, BLOCK), src.numel())
        diagonal_kernel[grid](x, log_decay, state, y, src, dst, starts, **launch.arguments())
    return y


def channel_launch(channels: int, longest: int) -> Launch:
    """Operands are fetched some tokens ahead, where any sequence has a second token."""
    return Launch({"CHANNELS": channels, "STAGES": 1 if longest <= 1 else 4, "BLOCK": BLOCK}, WARPS)


def _launch(channels: int, strides: tuple[int, int], longest: int) -> Launch:
    shared = channel_launch(channels, longest)
    return Launch(shared.constexprs | {"X_TOKEN": strides[0], "DECAY_TOKEN": strides[1]}, shared.num_warps)


def compile_cases() -> list[CompileCase]:
    """At recurrentgemma-2b's width."""
    return [_case("diagonal step 2560 fp32", "fp32", 1), _case("diagonal scan 2560 bf16", "bf16", 512)]


def _case(name: str, dtype: str, longest: int) -> CompileCase:
    operands = {"x": f"*{dtype}", "log_decay": "*fp32", "state": "*fp32", "y": "*fp32"}
    signature = operands | dict.fromkeys(("src", "dst", "starts"), "*i32")
    return CompileCase.of(name, diagonal_kernel, signature, _launch(2560, (2560, 2560), longest))
