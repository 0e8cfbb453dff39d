"""RWKV-4's attention: one program per sequence and block of channels, which are all independent."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ostinato.kernels.gpu.compile import CompileCase
from ostinato.kernels.gpu.diagonal import BLOCK, channel_launch
from ostinato.kernels.gpu.launch import Launch


@triton.jit
def wkv4_kernel(
    k: tl.tensor,
    v: tl.tensor,
    decay: tl.tensor,
    bonus: tl.tensor,
    state: tl.tensor,
    y: tl.tensor,
    src: tl.tensor,
    dst: tl.tensor,
    starts: tl.tensor,
    CHANNELS: tl.constexpr,
    K_TOKEN: tl.constexpr,
    V_TOKEN: tl.constexpr,
    STAGES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Grid (blocks of channels, sequences). K_TOKEN and V_TOKEN are strides; y and state are contiguous."""
    sequence, channel = tl.program_id(1), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < CHANNELS
    source, target = tl.load(src + sequence).to(tl.int64), tl.load(dst + sequence).to(tl.int64)
    first, last = tl.load(starts + sequence).to(tl.int64), tl.load(starts + sequence + 1).to(tl.int64)
    known, kept = channel < tl.where(source >= 0, CHANNELS, 0), channel < tl.where(target >= 0, CHANNELS, 0)
    before, after = state + source * 3 * CHANNELS + channel, state + target * 3 * CHANNELS + channel
    a = tl.load(before, mask=known, other=0.0)
    b = tl.load(before + CHANNELS, mask=known, other=0.0)
    p = tl.load(before + 2 * CHANNELS, mask=known, other=0.0)
    w = tl.load(decay + channel, mask=inside, other=0.0)
    u = tl.load(bonus + channel, mask=inside, other=0.0)
    k += first * K_TOKEN + channel
    v += first * V_TOKEN + channel
    y += first * CHANNELS + channel
    for _ in tl.range(0, last - first, num_stages=STAGES):
        key = tl.load(k, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(v, mask=inside, other=0.0).to(tl.float32)
        p = tl.where(b > 0, p, float("-inf"))
        top = tl.maximum(p, u + key)
        past, now = tl.exp(p - top), tl.exp(u + key - top)
        tl.store(y, (past * a + now * value) / (past * b + now), mask=inside)
        top = tl.maximum(p + w, key)
        past, now = tl.exp(p + w - top), tl.exp(key - top)
        a, b, p = past * a + now * value, past * b + now, top
        k += K_TOKEN
        v += V_TOKEN
        y += CHANNELS
    tl.store(after, a, mask=kept)
    tl.store(after + CHANNELS, b, mask=kept)
    tl.store(after + 2 * CHANNELS, p, mask=kept)


def wkv4(
    k: Tensor,
    v: Tensor,
    decay: Tensor,
    bonus: Tensor,
    state: Tensor,
    src: Tensor,
    dst: Tensor,
    starts: Tensor,
    longest: int,
) -> Tensor:
    """`ostinato::wkv4`: see `ostinato.kernels.wkv4`."""
    channels = state.shape[2]
    y = torch.empty(k.shape, dtype=torch.float32, device=k.device)
    if src.numel() and channels:
        launch = _launch(channels, (k.stride(0), v.stride(0)), longest)
        grid = (triton.cdiv(channels, BLOCK), src.numel())
        wkv4_kernel[grid](k, v, decay, bonus, state, y, src, dst, starts, **launch.arguments())
    return y


def _launch(channels: int, strides: tuple[int, int], longest: int) -> Launch:
    shared = channel_launch(channels, longest)
    return Launch(shared.constexprs | {"K_TOKEN": strides[0], "V_TOKEN": strides[1]}, shared.num_warps)


def compile_cases() -> list[CompileCase]:
    """At the width of RWKV-4 7B."""
    return [_case("wkv4 step 4096 fp32", "fp32", 1), _case("wkv4 scan 4096 bf16", "bf16", 512)]


def _case(name: str, dtype: str, longest: int) -> CompileCase:
    operands = dict.fromkeys(("k", "v"), f"*{dtype}") | dict.fromkeys(("decay", "bonus", "state", "y"), "*fp32")
    signature = operands | dict.fromkeys(("src", "dst", "starts"), "*i32")
    return CompileCase.of(name, wkv4_kernel, signature, _launch(4096, (4096, 4096), longest))
