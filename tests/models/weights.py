"""Random weights whose mechanisms all matter: norms near one, decays from nearly 0 to nearly 1, gates half open.

Setting any one tensor to zero (a norm's to one) moves the logits; `test_oracles.py` checks that. All are fp32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from tests.models.checkpoints import Tensors

# Of the logits, about.
LOGIT_STD = 2.5


class Draw:
    """Draws of one seeded generator."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, std: float = 1.0, mean: float = 0.0) -> torch.Tensor:
        return torch.empty(shape).normal_(mean, std, generator=self._generator)

    def uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        return torch.empty(shape).uniform_(low, high, generator=self._generator)

    def matrix(self, rows: int, columns: int, gain: float = 1.0) -> torch.Tensor:
        """Keeps the size of what it is applied to, times `gain`."""
        return self.normal(rows, columns, std=gain * columns**-0.5)

    def norm(self, size: int) -> torch.Tensor:
        return self.normal(size, std=0.2, mean=1.0)

    def last_norm(self, size: int, tied: bool) -> torch.Tensor:
        """With random signs where the embedding is tied: or else the token just read wins every time."""
        weight = self.norm(size)
        return weight * self.normal(size).sign() if tied else weight


def mamba_tensors(config: Mapping[str, Any], seed: int) -> Tensors:
    """transformers' names. `config`: transformers' keys, `intermediate_size` and `time_step_rank` resolved."""
    return _state_space_model(config, seed, _mamba_block)


def mamba2_tensors(config: Mapping[str, Any], seed: int) -> Tensors:
    """transformers' names. `config`: transformers' keys."""
    return _state_space_model(config, seed, _mamba2_block)


def _state_space_model(
    config: Mapping[str, Any], seed: int, make_block: Callable[[Draw, Mapping[str, Any]], Tensors]
) -> Tensors:
    draw = Draw(seed)
    d, rows = config["hidden_size"], config["vocab_size"]
    tensors = {"backbone.embeddings.weight": draw.matrix(rows, d, LOGIT_STD)}
    for layer in range(config["num_hidden_layers"]):
        block = make_block(draw, config)
        tensors.update({f"backbone.layers.{layer}.{name}": tensor for name, tensor in block.items()})
    tensors["backbone.norm_f.weight"] = draw.last_norm(d, config["tie_word_embeddings"])
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = draw.matrix(rows, d, LOGIT_STD)
    return tensors


def _mamba_block(draw: Draw, config: Mapping[str, Any]) -> Tensors:
    d, inner, state = config["hidden_size"], config["intermediate_size"], config["state_size"]
    rank, width = config["time_step_rank"], config["conv_kernel"]
    biases = step_bias(draw, inner)
    block = {
        "norm.weight": draw.norm(d),
        "mixer.in_proj.weight": draw.matrix(2 * inner, d),
        "mixer.conv1d.weight": draw.normal(inner, 1, width, std=width**-0.5),
        "mixer.x_proj.weight": draw.matrix(rank + 2 * state, inner),
        "mixer.dt_proj.weight": draw.matrix(inner, rank, 0.7),
        "mixer.dt_proj.bias": biases,
        "mixer.A_log": draw.uniform(math.log(0.3), math.log(16.0), inner, state),
        "mixer.D": draw.norm(inner),
        "mixer.out_proj.weight": draw.matrix(d, inner, 1.5),
    }
    if config["use_conv_bias"]:
        block["mixer.conv1d.bias"] = draw.normal(inner, std=0.3)
    if config["use_bias"]:
        block["mixer.in_proj.bias"] = draw.normal(2 * inner, std=0.3)
        block["mixer.out_proj.bias"] = draw.normal(d, std=0.3)
    return block


def step_bias(draw: Draw, size: int) -> torch.Tensor:
    """Whose softplus is 1e-3 to 1."""
    return torch.log(torch.expm1(torch.exp(draw.uniform(math.log(1e-3), 0.0, size))))


def _mamba2_block(draw: Draw, config: Mapping[str, Any]) -> Tensors:
    d, heads, width = config["hidden_size"], config["num_heads"], config["conv_kernel"]
    inner = heads * config["head_dim"]
    channels = inner + 2 * config["n_groups"] * config["state_size"]
    block = {
        "norm.weight": draw.norm(d),
        "mixer.in_proj.weight": draw.matrix(inner + channels + heads, d),
        "mixer.conv1d.weight": draw.normal(channels, 1, width, std=width**-0.5),
        "mixer.dt_bias": step_bias(draw, heads),
        "mixer.A_log": draw.uniform(math.log(0.3), math.log(16.0), heads),
        "mixer.D": draw.norm(heads),
        "mixer.norm.weight": draw.norm(inner),
        "mixer.out_proj.weight": draw.matrix(d, inner, 1.5),
    }
    if config["use_conv_bias"]:
        block["mixer.conv1d.bias"] = draw.normal(channels, std=0.3)
    if config["use_bias"]:
        block["mixer.in_proj.bias"] = draw.normal(inner + channels + heads, std=0.3)
        block["mixer.out_proj.bias"] = draw.normal(d, std=0.3)
    return block


def mamba2_mixer(draw: Draw, config: Mapping[str, Any]) -> Tensors:
    """One layer's tensors but the norm before it, without a prefix. `config`: transformers' keys of Mamba-2."""
    block = _mamba2_block(draw, config)
    return {name.removeprefix("mixer."): tensor for name, tensor in block.items() if name.startswith("mixer.")}


def rwkv7_tensors(config: Mapping[str, Any], seed: int) -> Tensors:
    """The names of a `.pth` file, with the three `v` tensors of layer 0 that nobody reads. `config`: fla's keys."""
    draw = Draw(seed)
    d, rows = config["hidden_size"], config["vocab_size"]
    tensors = {"emb.weight": draw.matrix(rows, d, LOGIT_STD)}
    tensors.update(_layer_norm(draw, "blocks.0.ln0", d))
    for layer in range(config["num_hidden_layers"]):
        block = {**_layer_norm(draw, "ln1", d), **_rwkv7_attention(draw, config), **_layer_norm(draw, "ln2", d)}
        block["ffn.x_k"] = draw.uniform(0.0, 1.0, 1, 1, d)
        block["ffn.key.weight"] = draw.matrix(config["intermediate_size"], d)
        block["ffn.value.weight"] = draw.matrix(d, config["intermediate_size"], 0.7)
        tensors.update({f"blocks.{layer}.{name}": tensor for name, tensor in block.items()})
    tensors["ln_out.weight"] = draw.last_norm(d, config["tie_word_embeddings"])
    tensors["ln_out.bias"] = draw.normal(d, std=0.2)
    tensors["head.weight"] = tensors["emb.weight"] if config["tie_word_embeddings"] else draw.matrix(rows, d, LOGIT_STD)
    return tensors


def _layer_norm(draw: Draw, name: str, size: int) -> Tensors:
    return {f"{name}.weight": draw.norm(size), f"{name}.bias": draw.normal(size, std=0.2)}


def _rwkv7_attention(draw: Draw, config: Mapping[str, Any]) -> Tensors:
    d, head_dim = config["hidden_size"], config["head_dim"]
    block = {f"x_{name}": draw.uniform(0.0, 1.0, 1, 1, d) for name in "rwkvag"}
    ranks = {"w": "decay_low_rank_dim", "a": "a_low_rank_dim", "v": "v_low_rank_dim", "g": "gate_low_rank_dim"}
    for name, key in ranks.items():
        block[f"{name}1"] = draw.matrix(config[key], d, 1.5).T
        block[f"{name}2"] = draw.matrix(d, config[key], 1.5).T
    block["w0"] = draw.uniform(-8.0, 4.0, 1, 1, d)  # decays of 0.55, the least there is, to nearly 1
    block["a0"] = draw.uniform(-2.0, 2.0, 1, 1, d)
    block["v0"] = draw.uniform(-2.0, 2.0, 1, 1, d)
    block["k_k"] = draw.normal(1, 1, d, std=0.2, mean=0.8)
    block["k_a"] = draw.normal(1, 1, d, std=0.2, mean=1.0)
    block["r_k"] = draw.normal(d // head_dim, head_dim, std=0.2)
    for name in ("receptance", "key", "value", "output"):
        block[f"{name}.weight"] = draw.matrix(d, d)
    block.update(_layer_norm(draw, "ln_x", d))
    return {f"att.{name}": tensor for name, tensor in block.items()}
