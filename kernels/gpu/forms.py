"""Operands of the recurrence as each family of models calls it, drawn at random: what `cases.py` is made of.

Every form draws its optional operands per token, and its parameters.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ostinato.kernels.gpu.calls import Draw, Parts

Form = Callable[[Draw, int, int, int, int], tuple[dict[str, Tensor], dict[str, Any]]]  # tokens, heads, values, keys


def recurrence(form: Form) -> Callable[..., Parts]:
    """What `Case.make` asks for. Sizes: heads, values, keys; groups: heads of q and k, where they are fewer."""

    def make(draw: Draw, tokens: int, slots: int, *, heads: int, values: int, keys: int, groups: int = 0) -> Parts:
        per_token = {
            "q": draw.operand(tokens, groups or heads, keys),
            "k": draw.operand(tokens, groups or heads, keys),
            "v": draw.operand(tokens, heads, values),
        }
        optional, parameters = form(draw, tokens, heads, values, keys)
        pools = {"state": draw.parameter(slots, heads, values, keys)}
        return per_token | optional, pools, {"scale": keys**-0.5, **parameters}

    return make


def mamba(draw: Draw, tokens: int, heads: int, values: int, keys: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A rate for every element of the state."""
    per_token = {
        "step": draw.operand(tokens, heads, values, low=-4.0),
        "gate": draw.operand(tokens, heads, values, low=-3.0, high=3.0),
    }
    parameters = {
        "rate": -draw.parameter(heads, values, keys, low=0.01, high=4.0),
        "step_bias": draw.parameter(heads, values),
        "skip": draw.parameter(heads, values),
    }
    return per_token, parameters


def mamba2(draw: Draw, tokens: int, heads: int, values: int, keys: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A rate for every head."""
    del values, keys
    parameters = {
        "rate": -draw.parameter(heads, low=0.01, high=4.0),
        "step_bias": draw.parameter(heads),
        "skip": draw.parameter(heads),
    }
    return {"step": draw.operand(tokens, heads, low=-4.0)}, parameters


def retnet(draw: Draw, tokens: int, heads: int, values: int, keys: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A decay for every head."""
    del values, keys
    return {"log_decay": draw.log_decay(tokens, heads)}, {}


def gla(draw: Draw, tokens: int, heads: int, values: int, keys: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A decay for every key channel."""
    del values
    return {"log_decay": draw.log_decay(tokens, heads, keys)}, {}


def rwkv6(draw: Draw, tokens: int, heads: int, values: int, keys: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Likewise, read before the update."""
    per_token, _ = gla(draw, tokens, heads, values, keys)
    return per_token, {"bonus": draw.parameter(heads, keys)}


def rwkv7(draw: Draw, tokens: int, heads: int, values: int, keys: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The general delta rule: some of what is stored in the direction `a` is taken away."""
    del values
    a = torch.nn.functional.normalize(draw.parameter(tokens, heads, keys), dim=-1)
    b = -a * draw.parameter(tokens, heads, keys, low=0.0)
    per_token = {"a": a.to(draw.dtype), "b": b.to(draw.dtype)}
    return {"log_decay": 0.1 * draw.log_decay(tokens, heads, keys), **per_token}, {}


def deltanet(draw: Draw, tokens: int, heads: int, values: int, keys: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The delta rule."""
    del values, keys
    return {"beta": draw.operand(tokens, heads, low=0.0)}, {"normalize": True}


def gated_deltanet(
    draw: Draw, tokens: int, heads: int, values: int, keys: int
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The delta rule after a decay for every head."""
    decay, _ = retnet(draw, tokens, heads, values, keys)
    beta, parameters = deltanet(draw, tokens, heads, values, keys)
    return decay | beta, parameters


def kda(draw: Draw, tokens: int, heads: int, values: int, keys: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The delta rule after a decay for every key channel."""
    decay, _ = gla(draw, tokens, heads, values, keys)
    beta, parameters = deltanet(draw, tokens, heads, values, keys)
    return decay | beta, parameters
