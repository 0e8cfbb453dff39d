"""A mixture of experts in Triton: every token is multiplied by the weights of its own experts.

That suits a step, whose tokens mostly meet different experts; a prompt reads the weights from the second-level cache
again and again. The order of every sum depends on the weights' shape alone.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ostinato.kernels.gpu.compile import CompileCase
from ostinato.kernels.gpu.elementary import silu
from ostinato.kernels.gpu.launch import Launch


@triton.jit
def route_kernel(
    logits: tl.tensor,
    weights: tl.tensor,
    experts: tl.tensor,
    EXPERTS: tl.constexpr,
    CHOSEN: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Grid (tokens). An expert's place among those chosen is the number of chosen ones before it."""
    token, expert = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    x = tl.load(logits + token * EXPERTS + expert, mask=expert < EXPERTS, other=float("-inf"))
    power = tl.exp(x - tl.max(x, axis=0))
    left, chosen = x, tl.zeros((BLOCK,), tl.int32)
    for _ in range(CHOSEN):
        best = expert == tl.argmax(left, axis=0)
        left, chosen = tl.where(best, float("-inf"), left), tl.where(best, 1, chosen)
    place = token * CHOSEN + tl.cumsum(chosen, axis=0) - 1
    total = tl.sum(tl.where(chosen == 1, power, 0.0) if NORMALIZE else power, axis=0)
    tl.store(weights + place, power / total, mask=chosen == 1)
    tl.store(experts + place, expert, mask=chosen == 1)


@triton.jit
def expert_rows(
    x: tl.tensor, weight: tl.tensor, row: tl.tensor, ROWS: tl.constexpr, K: tl.constexpr, BLOCK_K: tl.constexpr
) -> tl.tensor:
    """Rows of a matrix [ROWS, K], zeros past its edge, times a vector [K]; summed in fp32."""
    inner = tl.arange(0, BLOCK_K)
    total = tl.zeros_like(row).to(tl.float32)
    for done in range(0, K, BLOCK_K):
        left = inner < K - done
        part = tl.load(x + done + inner, mask=left, other=0.0).to(tl.float32)
        at, inside = weight + row[:, None] * K + done + inner[None, :], (row < ROWS)[:, None] & left[None, :]
        total += tl.sum(tl.load(at, mask=inside, other=0.0).to(tl.float32) * part[None, :], axis=1)
    return total


@triton.jit
def expert_in_kernel(
    x: tl.tensor,
    gate_up: tl.tensor,
    experts: tl.tensor,
    h: tl.tensor,
    CHOSEN: tl.constexpr,
    K: tl.constexpr,
    INNER: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Grid (tokens x chosen, blocks of inner): h = silu(gate x) up x. All is contiguous."""
    visit, row = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    weight = gate_up + tl.load(experts + visit).to(tl.int64) * 2 * INNER * K
    x += visit // CHOSEN * K
    gate = expert_rows(x, weight, row, INNER, K, BLOCK_K)
    up = expert_rows(x, weight + INNER * K, row, INNER, K, BLOCK_K)
    tl.store(h + visit * INNER + row, silu(gate) * up, mask=row < INNER)


@triton.jit
def expert_out_kernel(
    h: tl.tensor,
    down: tl.tensor,
    experts: tl.tensor,
    weights: tl.tensor,
    residual: tl.tensor,
    y: tl.tensor,
    CHOSEN: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INNER: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """Grid (tokens, blocks of outputs): the residual, and what the token's experts give, in their order."""
    token, row = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at, inside = token * OUTPUTS + row, row < OUTPUTS
    total = tl.load(residual + at, mask=inside, other=0.0)
    for i in range(CHOSEN):
        visit = token * CHOSEN + i
        weight = down + tl.load(experts + visit).to(tl.int64) * OUTPUTS * INNER
        given = expert_rows(h + visit * INNER, weight, row, OUTPUTS, INNER, BLOCK_K)
        total += tl.load(weights + visit) * given
    tl.store(y + at, total, mask=inside)


def route(logits: Tensor, chosen: int, normalize: bool) -> tuple[Tensor, Tensor]:
    """`ostinato::route`: see `ostinato.kernels.experts`. Where logits are NaN, places may be left: they are zeros."""
    tokens, count = logits.shape
    weights = torch.zeros((tokens, chosen), dtype=torch.float32, device=logits.device)
    experts = torch.zeros((tokens, chosen), dtype=torch.int32, device=logits.device)
    if tokens:
        launch = _route_launch(count, chosen, normalize)
        route_kernel[(tokens,)](logits.contiguous(), weights, experts, **launch.arguments())
    return weights, experts


def experts(
    x: Tensor,
    gate_up: list[Tensor],
    down: list[Tensor],
    experts: Tensor,
    weights: Tensor,
    residual: Tensor,
    inner: int,
) -> Tensor:
    """`ostinato::experts`: see `ostinato.kernels.experts`. Weights are in one tensor, [E, N, K]."""
    ((_, outputs, _), dtype), (tokens, chosen) = (down[0].shape, down[0].dtype), experts.shape
    x, experts, weights, residual = (t.contiguous() for t in (x.to(dtype), experts, weights, residual))
    h = torch.empty((tokens * chosen, inner), dtype=dtype, device=x.device)
    y = torch.empty_like(residual)
    if tokens:
        into, out = _in_launch(x.shape[1], inner, chosen), _out_launch(outputs, inner, chosen)
        grid = (tokens * chosen, triton.cdiv(inner, into.constexprs["BLOCK"]))
        expert_in_kernel[grid](x, gate_up[0], experts, h, **into.arguments())
        grid = (tokens, triton.cdiv(outputs, out.constexprs["BLOCK"]))
        expert_out_kernel[grid](h, down[0], experts, weights, residual, y, **out.arguments())
    return y


def _route_launch(count: int, chosen: int, normalize: bool) -> Launch:
    block = triton.next_power_of_2(count)
    sizes = {"EXPERTS": count, "CHOSEN": chosen, "NORMALIZE": normalize, "BLOCK": block}
    return Launch(sizes, num_warps=min(4, max(1, block // 128)))


def _in_launch(width: int, inner: int, chosen: int) -> Launch:
    return Launch({"CHOSEN": chosen, "K": width, "INNER": inner, "BLOCK": 16, "BLOCK_K": 128}, num_warps=4)


def _out_launch(outputs: int, inner: int, chosen: int) -> Launch:
    return Launch({"CHOSEN": chosen, "OUTPUTS": outputs, "INNER": inner, "BLOCK": 32, "BLOCK_K": 128}, num_warps=4)


def compile_cases() -> list[CompileCase]:
    """At the sizes of Qwen3-Next-80B-A3B."""
    ids = {"experts": "*i32", "weights": "*fp32"}
    route = CompileCase.of("route 10/512", route_kernel, {"logits": "*fp32", **ids}, _route_launch(512, 10, True))
    cases = [route]
    for dtype in ("fp32", "bf16", "fp16"):
        operands = {"x": f"*{dtype}", "gate_up": f"*{dtype}", "experts": "*i32", "h": f"*{dtype}"}
        cases.append(CompileCase.of(f"experts in {dtype}", expert_in_kernel, operands, _in_launch(2048, 512, 10)))
        operands = {"h": f"*{dtype}", "down": f"*{dtype}", **ids, "residual": "*fp32", "y": "*fp32"}
        cases.append(CompileCase.of(f"experts out {dtype}", expert_out_kernel, operands, _out_launch(2048, 512, 10)))
    return cases
