"""What RWKV-7 does to every head of a token before and after the recurrence (Peng et al. 2025, section 4)."""

import math

import torch
from torch import Tensor

from ostinato.kernels import dispatch

DECAY_SCALE = math.exp(-0.5)  # bounds how fast a channel may forget

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def rwkv7_inputs_ref(
    key: Tensor,
    value: Tensor,
    decay: Tensor,
    rate: Tensor,
    first_value: Tensor | None,
    value_gate: Tensor | None,
    key_norm: Tensor,
    key_gate: Tensor,
    heads: int,
) -> Inputs:
    """Equations 6 to 14 of the paper: log decay, replacement key, -removal key, their product with the rate, value."""
    rate = torch.sigmoid(rate)
    removal = (key * key_norm).unflatten(-1, (heads, -1))
    removal = (removal / removal.norm(dim=-1, keepdim=True).clamp(min=1e-12)).flatten(-2)
    if first_value is not None and value_gate is not None:
        value = value + (first_value - value) * torch.sigmoid(value_gate)
    replacement = key * (1 + (rate - 1) * key_gate)
    return -DECAY_SCALE * torch.sigmoid(decay), replacement, -removal, removal * rate, value


def _inputs_meta(key: Tensor, *_: object) -> Inputs:
    one, two, three, four, five = (torch.empty_like(key) for _ in range(5))
    return one, two, three, four, five


dispatch.define(
    "rwkv7_inputs(Tensor key, Tensor value, Tensor decay, Tensor rate, Tensor? first_value, Tensor? value_gate, "
    "Tensor key_norm, Tensor key_gate, int heads) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference=rwkv7_inputs_ref,
    meta=_inputs_meta,
)


def rwkv7_inputs(
    key: Tensor,
    value: Tensor,
    decay: Tensor,
    rate: Tensor,
    first_value: Tensor | None,
    value_gate: Tensor | None,
    key_norm: Tensor,
    key_gate: Tensor,
    heads: int,
) -> Inputs:
    """From projections to the operands of the recurrence.

    key, value, and what the low-rank projections gave before their sigmoid: decay, rate, value_gate: [T, C];
    first_value: [T, C], the first layer's values, or None (as value_gate) in that layer; key_norm, key_gate: [C]; all
    fp32 and contiguous, C being `heads` heads. Returns log_decay, k, a, b and v for `recurrence`: [T, C] each.
    Raises ValueError, TypeError: operands that do not fit.
    """
    tokens = {"key": key, "value": value, "decay": decay, "rate": rate, "first": first_value, "gate": value_gate}
    _check("rwkv7_inputs", key.shape, {name: x for name, x in tokens.items() if x is not None})
    _check("rwkv7_inputs", key.shape[1:], {"key_norm": key_norm, "key_gate": key_gate})
    if (first_value is None) != (value_gate is None) or key.shape[1] % heads:
        raise ValueError("rwkv7_inputs: first_value and value_gate go together, and heads divide the channels")
    outputs: Inputs = dispatch.operators(key).rwkv7_inputs(
        key, value, decay, rate, first_value, value_gate, key_norm, key_gate, heads
    )
    return outputs


def rwkv7_output_ref(
    y: Tensor,
    r: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor,
    bonus: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    """Equations 17 and 18 of the paper: GroupNorm, the bonus of the current token, the gate."""
    heads = bonus.shape[0]
    y, r, k, v = (x.unflatten(-1, (heads, -1)) if x.dim() == 2 else x for x in (y, r, k, v))
    centred = y - y.mean(-1, keepdim=True)
    normal = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    x = normal * norm_weight + norm_bias + (r * bonus * k).sum(-1, keepdim=True) * v
    return (x.flatten(-2) * gate).to(dtype)


def _output_meta(y: Tensor, r: Tensor, k: Tensor, v: Tensor, gate: Tensor, *rest: object) -> Tensor:
    dtype = rest[-1]
    assert isinstance(dtype, torch.dtype)
    return torch.empty_like(gate, dtype=dtype)


dispatch.define(
    "rwkv7_output(Tensor y, Tensor r, Tensor k, Tensor v, Tensor gate, Tensor bonus, Tensor norm_weight, "
    "Tensor norm_bias, float eps, ScalarType dtype) -> Tensor",
    reference=rwkv7_output_ref,
    meta=_output_meta,
)


def rwkv7_output(
    y: Tensor,
    r: Tensor,
    k: Tensor,
    v: Tensor,
    gate: Tensor,
    bonus: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    """From what the recurrence gave to the input of the output projection.

    y: [T, H, D]; r, k, v (as they entered the recurrence), gate: [T, H D]; bonus, norm_weight, norm_bias: [H, D]; all
    fp32 and contiguous. Returns [T, H D] in `dtype`. Raises ValueError, TypeError: operands that do not fit.
    """
    _check("rwkv7_output", gate.shape, {"r": r, "k": k, "v": v, "gate": gate})
    _check("rwkv7_output", (gate.shape[0], *bonus.shape), {"y": y})
    _check("rwkv7_output", bonus.shape, {"bonus": bonus, "norm_weight": norm_weight, "norm_bias": norm_bias})
    out: Tensor = dispatch.operators(y).rwkv7_output(y, r, k, v, gate, bonus, norm_weight, norm_bias, eps, dtype)
    return out


def _check(name: str, shape: tuple[int, ...], operands: dict[str, Tensor]) -> None:
    for operand, x in operands.items():
        if x.shape != shape or not x.is_contiguous():
            raise ValueError(f"{name}: {operand} must be contiguous, of shape {tuple(shape)}, got {tuple(x.shape)}")
        if x.dtype != torch.float32:
            raise TypeError(f"{name}: {operand} must be float32, got {x.dtype}")
