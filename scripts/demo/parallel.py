"""Training forms of the recurrences: autograd functions over the C++ scans, and naive forms to check them by.

All tensors are fp32. ``dplr`` covers GLA (Yang et al., "Gated Linear Attention Transformers with
Hardware-Efficient Training", 2024) and RWKV-7 (Peng et al., "RWKV-7 Goose", 2025); ``selective_scan`` is the
recurrence of Mamba (Gu and Dao, 2023). At these sizes a state fits a core's cache, so a plain scan over time
with a hand-written backward pass costs less than the matrix products beside it, and needs no care about the
range of cumulated decays as chunked matrix forms do.

``python scripts/demo/parallel.py`` compares outputs and gradients with the naive forms.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.utils.cpp_extension import load

CHUNK = 16  # tokens between saved states, as in scan.cpp
LANES = 16  # channels a vector register holds, as in scan.cpp


@cache
def extension() -> ModuleType:
    """Compile (once per machine and torch version) and load ``scan.cpp``."""
    source = Path(__file__).with_name("scan.cpp")
    flags = ["-O3", "-march=native", "-mprefer-vector-width=512", "-ffast-math", "-fopenmp", "-std=c++20"]
    return load("ostinato_demo_scan", [str(source)], extra_cflags=flags)


def _keep(ctx, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)  # the saved states have no gradient: do not make zeros for it
    ctx.save_for_backward(*inputs, output[1])


@torch.library.custom_op("ostinato_demo::dplr", mutates_args=())
def _dplr(r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    output, states = extension().dplr_forward(*(x.contiguous() for x in (r, w, k, v, a, b)))
    return output, states


@_dplr.register_fake
def _(r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    batch, length, heads, size = r.shape
    return torch.empty_like(v), r.new_empty(batch, heads, -(-length // CHUNK), size, v.shape[-1])


@torch.library.custom_op("ostinato_demo::dplr_backward", mutates_args=())
def _dplr_backward(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, states: Tensor, gradient: Tensor
) -> list[Tensor]:
    return extension().dplr_backward(*(x.contiguous() for x in (r, w, k, v, a, b, states, gradient)))


@_dplr_backward.register_fake
def _(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, states: Tensor, gradient: Tensor
) -> list[Tensor]:
    return [torch.empty_like(x) for x in (r, w, k, v, a, b)]


def _dplr_gradients(ctx, gradient: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    return tuple(_dplr_backward(*ctx.saved_tensors, gradient))


_dplr.register_autograd(_dplr_gradients, setup_context=_keep)


def dplr(r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> Tensor:
    """Diagonal-plus-low-rank recurrence from a zero state.

    Per head, ``S_t = diag(w_t) S_{t-1} + b_t (a_t^T S_{t-1}) + k_t v_t^T`` and ``o_t = r_t^T S_t``.
    r, w, k, a, b: [B, T, H, K]; v: [B, T, H, V] with V 64 or 128; result [B, T, H, V]. Without ``a`` and
    ``b`` it is gated linear attention.
    """
    if a is None or b is None:
        a, b = r.new_empty(0), r.new_empty(0)
    return _dplr(r, w, k, v, a, b)[0]


def dplr_naive(r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor | None = None, b: Tensor | None = None) -> Tensor:
    """The same as :func:`dplr`, token by token in plain torch."""
    batch, length, heads, size = r.shape
    state = r.new_zeros(batch, heads, size, v.shape[-1])
    outputs = []
    for t in range(length):
        new = w[:, t, :, :, None] * state + k[:, t, :, :, None] * v[:, t, :, None, :]
        if a is not None and b is not None:
            new = new + b[:, t, :, :, None] * (a[:, t, :, :, None] * state).sum(-2, keepdim=True)
        state = new
        outputs.append((r[:, t, :, :, None] * state).sum(-2))
    return torch.stack(outputs, 1)


@torch.library.custom_op("ostinato_demo::selective_scan", mutates_args=())
def _scan(x: Tensor, dt: Tensor, rate: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    output, states = extension().mamba_forward(*(t.contiguous() for t in (x, dt, rate, b, c)))
    return output, states


@_scan.register_fake
def _(x: Tensor, dt: Tensor, rate: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    batch, length, channels = x.shape
    states = x.new_empty(batch, -(-length // CHUNK), channels // LANES, rate.shape[0], LANES)
    return torch.empty_like(x), states


@torch.library.custom_op("ostinato_demo::selective_scan_backward", mutates_args=())
def _scan_backward(
    x: Tensor, dt: Tensor, rate: Tensor, b: Tensor, c: Tensor, states: Tensor, gradient: Tensor
) -> list[Tensor]:
    return extension().mamba_backward(*(t.contiguous() for t in (x, dt, rate, b, c, states, gradient)))


@_scan_backward.register_fake
def _(x: Tensor, dt: Tensor, rate: Tensor, b: Tensor, c: Tensor, states: Tensor, gradient: Tensor) -> list[Tensor]:
    return [torch.empty_like(t) for t in (x, dt, rate, b, c)]


def _scan_gradients(ctx, gradient: Tensor, _: Tensor) -> tuple[Tensor, ...]:
    return tuple(_scan_backward(*ctx.saved_tensors, gradient))


_scan.register_autograd(_scan_gradients, setup_context=_keep)


def selective_scan(x: Tensor, dt: Tensor, rate: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Mamba's recurrence from a zero state: ``h_t = exp(dt A) h + dt x B``, ``y_t = C . h_t``.

    x, dt: [B, T, I]; rate (A, negative): [I, N]; b, c: [B, T, N]; result [B, T, I].
    """
    return _scan(x, dt, rate.t().contiguous(), b, c)[0]


def selective_scan_naive(x: Tensor, dt: Tensor, rate: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The same as :func:`selective_scan`, token by token in plain torch."""
    state = x.new_zeros(x.shape[0], *rate.shape)
    outputs = []
    for t in range(x.shape[1]):
        state = torch.exp(dt[:, t, :, None] * rate) * state + (dt * x)[:, t, :, None] * b[:, t, None, :]
        outputs.append((state * c[:, t, None, :]).sum(-1))
    return torch.stack(outputs, 1)


def compare(name: str, fast, naive, inputs: list[Tensor]) -> None:
    """Print and check the largest relative differences of outputs and gradients."""
    results = []
    for function in (fast, naive):
        leaves = [x.clone().requires_grad_() for x in inputs]
        output = function(*leaves)
        weight = torch.linspace(-1, 1, output.numel()).view_as(output)
        results.append([output.detach(), *torch.autograd.grad((output * weight).sum(), leaves)])
    errors = [((x - y).abs().max() / y.abs().max()).item() for x, y in zip(*results, strict=True)]
    print(f"{name}: " + " ".join(f"{error:.1e}" for error in errors))
    if max(errors) > 1e-4:
        raise SystemExit(f"{name}: the fast and the naive form differ")


def main() -> None:
    torch.manual_seed(0)
    batch, length, heads, size = 3, 37, 2, 32
    r, k, a, b = (torch.randn(batch, length, heads, size) for _ in range(4))
    w = torch.exp(-torch.rand(batch, length, heads, size))
    for width in (64, 128):
        v = torch.randn(batch, length, heads, width)
        compare(f"gla, V {width}", dplr, dplr_naive, [r, w, k, v])
        a_unit = torch.nn.functional.normalize(a, dim=-1)
        compare(f"rwkv7, V {width}", dplr, dplr_naive, [r, w, k, v, -a_unit, a_unit * torch.sigmoid(b)])
    x, channels, states = torch.randn(batch, length, 48), 48, 16
    dt, rate = torch.rand(batch, length, channels), -torch.rand(channels, states) * 4
    bc = [torch.randn(batch, length, states) for _ in range(2)]
    compare("mamba", selective_scan, selective_scan_naive, [x, dt, rate, *bc])


if __name__ == "__main__":
    main()
