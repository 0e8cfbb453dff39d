"""Every operator at the sizes of real models, and at small ones that no power of two divides."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import silu, softplus

from ostinato.kernels.attention import window_attention_ref
from ostinato.kernels.conv import causal_conv_ref
from ostinato.kernels.diagonal import diagonal_ref
from ostinato.kernels.experts import experts_ref, route_ref
from ostinato.kernels.gpu import forms, projection_forms
from ostinato.kernels.gpu.calls import Call, Draw, Function, Parts
from ostinato.kernels.linear import activated_linear_ref, linear_ref
from ostinato.kernels.packed import Packed
from ostinato.kernels.recurrence import recurrence_ref
from ostinato.kernels.rows import (
    geglu_ref,
    layer_norm_ref,
    log_sigmoid_ref,
    relu_square_ref,
    rms_norm_ref,
    sqrt_ref,
    swiglu_ref,
)
from ostinato.kernels.rwkv7 import rwkv7_inputs_ref, rwkv7_output_ref
from ostinato.kernels.shift import token_shift_ref
from ostinato.kernels.slstm import slstm_ref
from ostinato.kernels.wkv4 import wkv4_ref

Sizes = dict[str, int]


@dataclass(frozen=True, slots=True)
class Case:
    """An operator as a model calls it.

    make: draws the tensors for so many tokens and slots, and sizes as in `real` or `small`. windowed: whether the
    operator asks how many tokens were read before. token_dim: see `Call`.
    """

    operator: str
    model: str
    make: Callable[..., Parts]
    real: Sizes
    small: Sizes
    windowed: bool = False
    token_dim: int = 0

    @property
    def name(self) -> str:
        return f"{self.operator}, {self.model}"

    def call(self, draw: Draw, batch: Packed, slots: int, *, small: bool) -> Call:
        """A call for the batch's tokens, on pools of so many slots."""
        tokens = int(batch.starts[-1])
        per_token, pools, parameters = self.make(draw, tokens, slots, **(self.small if small else self.real))
        past = 3 * torch.arange(batch.src.numel(), dtype=torch.int32, device=draw.device) * (batch.src >= 0)
        reference = _REFERENCES[self.operator]
        counts = past if self.windowed else None
        return Call(self.operator, reference, per_token, pools, parameters, batch, counts, self.token_dim)


def _conv(draw: Draw, tokens: int, slots: int, *, channels: int) -> Parts:
    parameters = {"weight": draw.parameter(4, channels), "bias": draw.parameter(channels), "activate": True}
    pools = {"tail": draw.operand(slots, 3, channels)}
    return {"x": draw.operand(tokens, channels)}, pools, parameters


def _shift(draw: Draw, tokens: int, slots: int, *, channels: int) -> Parts:
    parameters = {"mix": draw.parameter(6, channels, low=0.0)}
    return {"x": draw.operand(tokens, channels)}, {"last": draw.operand(slots, channels)}, parameters


def _diagonal(draw: Draw, tokens: int, slots: int, *, channels: int) -> Parts:
    per_token = {"x": draw.operand(tokens, channels), "log_decay": draw.log_decay(tokens, channels)}
    return per_token, {"state": draw.parameter(slots, channels)}, {}


def _wkv4(draw: Draw, tokens: int, slots: int, *, channels: int) -> Parts:
    per_token = {"k": draw.operand(tokens, channels, low=-3.0, high=3.0), "v": draw.operand(tokens, channels)}
    parameters = {"decay": -draw.parameter(channels, low=0.001, high=3.0), "bonus": draw.parameter(channels)}
    state = draw.parameter(slots, 3, channels)
    state[:, 1] += 2.0  # the denominator, which is at least one once anything was read
    return per_token, {"state": state}, parameters


def _slstm(draw: Draw, tokens: int, slots: int, *, heads: int, width: int) -> Parts:
    parameters = {
        "recurrent": draw.parameter(heads, 4, width, width) * width**-0.5,
        "bias": draw.parameter(4, heads, width),
    }
    state = draw.parameter(slots, 4, heads, width)
    state[:, 2] += 2.0  # the normaliser, likewise
    return {"x": draw.operand(tokens, 4, heads, width)}, {"state": state}, parameters


def _attention(
    draw: Draw, tokens: int, slots: int, *, heads: int, groups: int, width: int, window: int, sinks: int = 0
) -> Parts:
    per_token = {
        "q": draw.operand(tokens, heads, width),
        "k": draw.operand(tokens, groups, width),
        "v": draw.operand(tokens, groups, width),
    }
    pools = {name: draw.operand(slots, window, groups, width) for name in ("keys", "values")}
    if not sinks:
        return per_token, pools, {"scale": width**-0.5}
    far = draw.operand(tokens, heads, width)
    return {**per_token, "far": far}, pools, {"scale": width**-0.5, "sinks": sinks}


def _rms_norm(draw: Draw, tokens: int, slots: int, *, groups: int, width: int) -> Parts:
    del slots
    per_token = {"x": draw.parameter(tokens, groups, width), "gate": draw.parameter(tokens, groups, width)}
    parameters = {"weight": draw.parameter(groups, width), "eps": 1e-5, "dtype": draw.dtype, "gate_first": False}
    return per_token, {}, parameters


def _layer_norm(draw: Draw, tokens: int, slots: int, *, width: int) -> Parts:
    del slots
    parameters = {"weight": draw.parameter(width), "bias": draw.parameter(width), "eps": 1e-5, "dtype": draw.dtype}
    return {"x": draw.parameter(tokens, width)}, {}, parameters


def _pointwise(draw: Draw, tokens: int, slots: int, *, width: int) -> Parts:
    del slots
    return {"x": draw.parameter(tokens, width, low=-9.0, high=9.0)}, {}, {"scale": 0.0625, "dtype": draw.dtype}


def _rwkv7_inputs(draw: Draw, tokens: int, slots: int, *, heads: int, width: int) -> Parts:
    del slots
    names = ("key", "value", "decay", "rate", "first_value", "value_gate")
    per_token = {name: draw.parameter(tokens, heads * width, low=-2.0, high=2.0) for name in names}
    parameters = {name: draw.parameter(heads * width, low=0.5) for name in ("key_norm", "key_gate")}
    return per_token, {}, {**parameters, "heads": heads}


def _rwkv7_output(draw: Draw, tokens: int, slots: int, *, heads: int, width: int) -> Parts:
    del slots
    per_token = {name: draw.parameter(tokens, heads * width) for name in ("r", "k", "v", "gate")}
    parameters = {name: draw.parameter(heads, width) for name in ("bonus", "norm_weight", "norm_bias")}
    return (
        {"y": draw.parameter(tokens, heads, width), **per_token},
        {},
        {**parameters, "eps": 64e-5, "dtype": draw.dtype},
    )


_FEW, _WIDE = {"heads": 2, "values": 20, "keys": 12}, {"heads": 1, "values": 37, "keys": 6}

_REFERENCES: dict[str, Function] = {
    "activated_linear": activated_linear_ref,
    "causal_conv": causal_conv_ref,
    "diagonal": diagonal_ref,
    "exp": torch.exp,
    "experts": experts_ref,
    "geglu": geglu_ref,
    "layer_norm": layer_norm_ref,
    "linear": linear_ref,
    "log_sigmoid": log_sigmoid_ref,
    "recurrence": recurrence_ref,
    "relu_square": relu_square_ref,
    "rms_norm": rms_norm_ref,
    "route": route_ref,
    "rwkv7_inputs": rwkv7_inputs_ref,
    "rwkv7_output": rwkv7_output_ref,
    "sigmoid": torch.sigmoid,
    "silu": silu,
    "slstm": slstm_ref,
    "softplus": softplus,
    "sqrt": sqrt_ref,
    "swiglu": swiglu_ref,
    "tanh": torch.tanh,
    "token_shift": token_shift_ref,
    "window_attention": window_attention_ref,
    "wkv4": wkv4_ref,
}

CASES = (
    Case("recurrence", "mamba-130m", forms.recurrence(forms.mamba), {"heads": 1, "values": 1536, "keys": 16}, _WIDE),
    Case(
        "recurrence",
        "mamba2-370m",
        forms.recurrence(forms.mamba2),
        {"heads": 32, "values": 64, "keys": 128, "groups": 1},
        {**_FEW, "groups": 1},
    ),
    Case("recurrence", "retnet-1.3b", forms.recurrence(forms.retnet), {"heads": 8, "values": 512, "keys": 256}, _FEW),
    Case("recurrence", "gla-340m", forms.recurrence(forms.gla), {"heads": 4, "values": 256, "keys": 128}, _FEW),
    Case("recurrence", "rwkv6-1.6b", forms.recurrence(forms.rwkv6), {"heads": 32, "values": 64, "keys": 64}, _FEW),
    Case("recurrence", "rwkv7-0.4b", forms.recurrence(forms.rwkv7), {"heads": 16, "values": 64, "keys": 64}, _FEW),
    Case(
        "recurrence", "deltanet-1.3b", forms.recurrence(forms.deltanet), {"heads": 16, "values": 128, "keys": 128}, _FEW
    ),
    Case(
        "recurrence",
        "gated-deltanet-1.3b",
        forms.recurrence(forms.gated_deltanet),
        {"heads": 6, "values": 512, "keys": 256},
        _FEW,
    ),
    Case("recurrence", "kda-1.3b", forms.recurrence(forms.kda), {"heads": 16, "values": 128, "keys": 128}, _FEW),
    Case("causal_conv", "mamba2-370m", _conv, {"channels": 2304}, {"channels": 37}),
    Case("token_shift", "rwkv7-0.4b", _shift, {"channels": 1024}, {"channels": 37}, token_dim=1),
    Case("diagonal", "recurrentgemma-2b", _diagonal, {"channels": 2560}, {"channels": 37}),
    Case("wkv4", "rwkv4-1.5b", _wkv4, {"channels": 2048}, {"channels": 37}),
    Case("slstm", "xlstm-125m", _slstm, {"heads": 4, "width": 192}, {"heads": 2, "width": 12}),
    Case(
        "window_attention",
        "recurrentgemma-2b",
        _attention,
        {"heads": 10, "groups": 1, "width": 256, "window": 2048},
        {"heads": 2, "groups": 1, "width": 12, "window": 7},
        windowed=True,
    ),
    Case(
        "window_attention",
        "bamba-9b",
        _attention,
        {"heads": 32, "groups": 8, "width": 128, "window": 4096, "sinks": 4},
        {"heads": 2, "groups": 1, "width": 12, "window": 7, "sinks": 3},
        windowed=True,
    ),
    Case("rms_norm", "gla-340m", _rms_norm, {"groups": 4, "width": 256}, {"groups": 2, "width": 20}),
    Case("layer_norm", "rwkv7-0.4b", _layer_norm, {"width": 1024}, {"width": 37}),
    Case(
        "linear",
        "mamba2-370m",
        projection_forms.linear,
        {"outputs": 4384, "inputs": 1024},
        {"outputs": 37, "inputs": 50},
    ),
    Case(
        "activated_linear",
        "gla-340m",
        projection_forms.activated_linear,
        {"outputs": 5632, "inputs": 1024},
        {"outputs": 74, "inputs": 50},
    ),
    Case("route", "qwen3-next-80b", projection_forms.route, {"count": 512, "chosen": 10}, {"count": 7, "chosen": 3}),
    Case("experts", "qwen3-next-80b", projection_forms.experts, projection_forms.QWEN3_NEXT, projection_forms.SMALL),
    Case("rwkv7_inputs", "rwkv7-0.4b", _rwkv7_inputs, {"heads": 16, "width": 64}, {"heads": 2, "width": 12}),
    Case("rwkv7_output", "rwkv7-0.4b", _rwkv7_output, {"heads": 16, "width": 64}, {"heads": 2, "width": 12}),
    *(
        Case(function, "rwkv7-0.4b", _pointwise, {"width": 4096}, {"width": 37})
        for function in ("sigmoid", "silu", "tanh", "exp", "softplus", "relu_square")
    ),
    Case("log_sigmoid", "gla-340m", _pointwise, {"width": 512}, {"width": 37}),
    Case("swiglu", "gla-340m", _pointwise, {"width": 5632}, {"width": 74}),
    Case("geglu", "recurrentgemma-2b", _pointwise, {"width": 15360}, {"width": 74}),
    Case("sqrt", "recurrentgemma-2b", _pointwise, {"width": 2560}, {"width": 37}),
)
