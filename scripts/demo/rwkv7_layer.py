"""One layer of RWKV-7 as a training module, with the parameter names of the published layout."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from blocks import linear
from parallel import dplr
from torch import Tensor, nn


class RWKV7Attention(nn.Module):
    """RWKV-7 time mixing; ``first`` carries the values of layer 0 to the layers above, token by token."""

    def __init__(self, c: dict[str, Any], index: int) -> None:
        super().__init__()
        d, layers = c["hidden_size"], c["num_hidden_layers"]
        self.heads, self.eps = d // c["head_dim"], c["head_dim"] * c["norm_eps"]
        depth, low = index / max(1, layers - 1), 1 - index / layers
        ramp = torch.arange(d) / d
        for name, power in {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}.items():
            setattr(self, f"x_{name}", nn.Parameter((1 - ramp ** (power * low)).view(1, 1, d)))
        self.k_k, self.k_a = nn.Parameter(torch.full((d,), 0.85)), nn.Parameter(torch.ones(d))
        self.r_k = nn.Parameter(torch.zeros(self.heads, c["head_dim"]))
        self.r_proj, self.k_proj = linear(d, d, scale=0.5), linear(d, d, scale=0.3)
        self.v_proj, self.o_proj = linear(d, d, scale=0.5), linear(d, d, scale=0.5 * layers**-0.5)
        self.w_lora = LowRank(d, c["decay_low_rank_dim"], bias=-6.5 + 5 * ramp ** (0.85 + depth**0.5))
        self.a_lora = LowRank(d, c["a_low_rank_dim"], bias=torch.zeros(d))
        if index:
            self.v_lora = LowRank(d, c["v_low_rank_dim"], bias=torch.ones(d))
        self.g_lora = LowRank(d, c["gate_low_rank_dim"], bias=None)
        self.g_norm = nn.GroupNorm(self.heads, d, eps=self.eps)

    def forward(self, x: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor]:
        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.heads, -1))

        shift = F.pad(x, (0, 0, 1, -1)) - x
        r = self.r_proj(x + shift * self.x_r).float()
        k = self.k_proj(x + shift * self.x_k).float()
        mixed_v = x + shift * self.x_v
        v = self.v_proj(mixed_v).float()
        w = torch.exp(-math.exp(-0.5) * torch.sigmoid(self.w_lora(x + shift * self.x_w, torch.tanh)))
        a = torch.sigmoid(self.a_lora(x + shift * self.x_a))
        g = self.g_lora(x + shift * self.x_g, torch.sigmoid)
        if first is None:
            first = v
        else:
            v = v + (first - v) * torch.sigmoid(self.v_lora(mixed_v))
        erase = F.normalize(split(k * self.k_k), dim=-1)
        k = k * (1 + (a - 1) * self.k_a)
        r, w, k, a, v_heads = split(r), split(w), split(k), split(a), split(v)
        o = dplr(r, w, k, v_heads, -erase, erase * a)
        o = F.group_norm(o.flatten(0, 1).flatten(1), self.heads, self.g_norm.weight, self.g_norm.bias, self.eps)
        bonus = (r * k * self.r_k).sum(-1, keepdim=True) * v_heads
        return self.o_proj((o.view_as(x) + bonus.flatten(-2)) * g), first


class LowRank(nn.Module):
    """``lora.0`` then an activation then ``lora.2``, which has a bias unless ``bias`` is None."""

    def __init__(self, size: int, rank: int, bias: Tensor | None) -> None:
        super().__init__()
        up = linear(rank, size, scale=0.3, bias=bias is not None)
        if bias is not None:
            nn.init.zeros_(up.bias)
            up.bias.data.add_(bias)
        self.lora = nn.ModuleDict({"0": linear(size, rank, scale=0.3), "2": up})

    def forward(self, x: Tensor, activation=None) -> Tensor:
        low = self.lora["0"](x)
        return self.lora["2"](activation(low.float()) if activation else low).float()


class RWKV7Mlp(nn.Module):
    """RWKV-7 channel mixing: squared ReLU on a token-shifted input."""

    def __init__(self, c: dict[str, Any], index: int) -> None:
        super().__init__()
        d = c["hidden_size"]
        inner = c["intermediate_size"] or int(d * c["hidden_ratio"])
        self.x_k = nn.Parameter(1 - (torch.arange(d) / d) ** ((1 - index / c["num_hidden_layers"]) ** 4))
        self.key, self.value = linear(d, inner), linear(inner, d, scale=0.5 * c["num_hidden_layers"] ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        shift = F.pad(x, (0, 0, 1, -1)) - x
        return self.value(torch.relu(self.key(x + shift * self.x_k).float()).square())


class RWKV7Layer(nn.Module):
    def __init__(self, c: dict[str, Any], index: int) -> None:
        super().__init__()
        d, eps = c["hidden_size"], c["norm_eps"]
        if index == 0:
            self.pre_norm = nn.LayerNorm(d, eps)
        self.has_pre_norm = index == 0
        self.attn_norm, self.ffn_norm = nn.LayerNorm(d, eps), nn.LayerNorm(d, eps)
        self.attn, self.ffn = RWKV7Attention(c, index), RWKV7Mlp(c, index)

    def forward(self, x: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.has_pre_norm:
            x = self.pre_norm(x).float()
        o, first = self.attn(self.attn_norm(x).float(), first)
        x = x + o.float()
        return x + self.ffn(self.ffn_norm(x).float()).float(), first
