"""BASED in plain torch, fp32, the whole text at once: flash-linear-attention's reference of the Taylor attention, and
PyTorch's own attention, convolution and norm. `test_oracles.py` holds it to logits of the authors' code.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fla.ops.based.naive import naive_parallel_based
from torch import Tensor
from torch.nn.functional import conv1d, embedding, linear, pad, rms_norm, scaled_dot_product_attention, silu
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from tests.oracles.worker import Forward, serve

Config = dict[str, Any]


class Weights:
    """The tensors of a module, by their names within it."""

    def __init__(self, stored: dict[str, Tensor], prefix: str = "") -> None:
        self._stored, self._prefix = stored, prefix

    def __getitem__(self, name: str) -> Tensor:
        return self._stored[self._prefix + name].float()

    def get(self, name: str) -> Tensor | None:
        return self[name] if self._prefix + name in self._stored else None

    def within(self, name: str) -> Weights:
        return Weights(self._stored, f"{self._prefix}{name}.")

    def apply(self, name: str, x: Tensor) -> Tensor:
        return linear(x, self[f"{name}.weight"], self.get(f"{name}.bias"))


Mix = Callable[[Tensor, Weights, int, Config], Tensor]


def load(folder: Path, mixed: Mix | None = None) -> Forward:
    """mixed: a layer's mixer, where it is not `mixer_of`."""
    mixed = mixed or mixer_of
    config = json.loads((folder / "config.json").read_text())
    stored = torch.load(folder / "pytorch_model.bin", weights_only=True)
    weights = Weights({name.replace(".conv1.", ".conv."): x for name, x in stored.items()}, "model.")
    eps = config["layer_norm_epsilon"]

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return rms_norm(x, weight.shape, weight, eps)

    def forward(ids: list[int]) -> Tensor:
        table = weights["transformer.embeddings.word_embeddings.weight"]
        x = embedding(torch.tensor(ids), table)
        for i in range(config["n_layer"]):
            layer = weights.within(f"transformer.layers.{i}")
            x = x + mixed(norm(x, layer["norm1.weight"]), layer.within("mixer"), i, config)
            value, gate = layer.apply("mlp.fc1", norm(x, layer["norm2.weight"])).chunk(2, -1)
            x = x + layer.apply("mlp.fc2", silu(gate) * value)
        return linear(norm(x, weights["transformer.ln_f.weight"]), weights["lm_head.weight"])

    return forward


def mixer_of(u: Tensor, weights: Weights, layer: int, config: Config) -> Tensor:
    if layer in (config.get("alt_mixer_2_layers") or ()):
        return attention(u, weights, config)
    if layer in (config.get("alt_mixer_layers") or ()):
        return taylor(u, weights, config["alt_mixer"])
    return gated_conv(u, weights)


def heads_of(x: Tensor, heads: int) -> Tensor:
    """[T, H D] -> [1, H, T, D]."""
    return x.unflatten(-1, (heads, -1)).transpose(0, 1).unsqueeze(0)


def taylor(u: Tensor, weights: Weights, config: Config) -> Tensor:
    q, k, v = (heads_of(weights.apply(f"proj_{name}", u), config["num_heads"]) for name in "qkv")
    sums, ones = (naive_parallel_based(q, k, each, use_norm=False) for each in (v, torch.ones_like(v)))
    return weights.apply("out_proj", (sums / ones)[0].transpose(0, 1).flatten(1))


def attention(u: Tensor, weights: Weights, config: Config) -> Tensor:
    """Half of `window_size` lies before a token."""
    heads, at = config["n_head"], torch.arange(u.shape[0])
    head = u.shape[1] // heads
    width, half_window = int(config["rotary_emb_fraction"] * head), config["alt_mixer_2"]["window_size"] // 2
    kv_heads = config.get("n_head_kv") or heads
    q, k, v = weights.apply("Wqkv", u).split([heads * head, kv_heads * head, kv_heads * head], -1)
    q, k, v = heads_of(q, heads), heads_of(k, kv_heads), heads_of(v, kv_heads)
    if width:
        angles = at[:, None] * config.get("rotary_emb_base", 10000.0) ** -(torch.arange(0, width, 2) / width)
        angles = torch.cat([angles, angles], -1)[None]
        turned = apply_rotary_pos_emb(q[..., :width], k[..., :width], angles.cos(), angles.sin())
        q, k = (torch.cat([x, each[..., width:]], -1) for x, each in zip(turned, (q, k), strict=True))
    back = at[:, None] - at
    y = scaled_dot_product_attention(q, k, v, attn_mask=(back >= 0) & (back <= half_window), enable_gqa=True)
    return weights.apply("out_proj", y[0].transpose(0, 1).flatten(1))


def gated_conv(u: Tensor, weights: Weights) -> Tensor:
    x, gate = weights.apply("in_proj", u).chunk(2, -1)
    kernel = weights["conv.conv.weight"]
    padded = pad(x.T, (kernel.shape[-1] - 1, 0))
    return weights.apply("out_proj", silu(conv1d(padded, kernel, groups=x.shape[-1])).T * gate)


if __name__ == "__main__":
    serve(load)
