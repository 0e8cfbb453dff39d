"""The three demo networks as training modules, with the parameter names of the published checkpoint layouts.

A module's ``state_dict`` is the checkpoint: nothing is renamed on export. Projections may run in bf16
(autocast); norms, gates, decays and states are computed in fp32. B is the batch, T the length, d the hidden
size, H the heads, K and V the key and value sizes of a head, I the inner width of Mamba, N its states per
channel.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from blocks import RMSNorm, linear
from parallel import dplr, dplr_naive, selective_scan
from rwkv7_layer import RWKV7Layer
from torch import Tensor, nn


class GLAAttention(nn.Module):
    """Gated linear attention: ``S = diag(e^gk) S + k v^T``, ``o = q S``, then a gated norm per head."""

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        d, self.heads, self.normalizer = c["hidden_size"], c["num_heads"], c.get("gate_logit_normalizer", 16)
        keys, values = int(d * c["expand_k"]), int(d * c["expand_v"])
        self.q_proj, self.k_proj = linear(d, keys), linear(d, keys)
        self.v_proj, self.g_proj = linear(d, values), linear(d, values)
        self.gk_proj = nn.Sequential(linear(d, 16), linear(16, keys, bias=True))
        self.g_norm_swish_gate = RMSNorm(values // self.heads, c["norm_eps"])
        self.o_proj = linear(values, d, scale=(2 * c["num_hidden_layers"]) ** -0.5)
        # The log-decays start spread from -1.5 (little more than the token before) to -0.002 (hundreds of
        # tokens): without a convolution, the fast ones are what lets the next layer see neighbours.
        rates = torch.logspace(math.log10(1.5), math.log10(0.002), keys // self.heads).repeat(self.heads)
        with torch.no_grad():
            self.gk_proj[1].bias.copy_(-torch.log(torch.expm1(rates * self.normalizer)))

    def forward(self, x: Tensor) -> Tensor:
        def split(y: Tensor) -> Tensor:
            return y.float().unflatten(-1, (self.heads, -1))

        q, k, v = split(self.q_proj(x)), split(self.k_proj(x)), split(self.v_proj(x))
        decay = torch.exp(F.logsigmoid(split(self.gk_proj(x))) / self.normalizer)
        scan = dplr if v.shape[-1] in (64, 128) else dplr_naive
        o = scan(q * q.shape[-1] ** -0.5, decay, k, v)
        return self.o_proj(self.g_norm_swish_gate(o).flatten(-2) * F.silu(self.g_proj(x).float()))


class SwiGLU(nn.Module):
    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        d, inner = c["hidden_size"], c["intermediate_size"]
        if inner is None:
            inner = 256 * math.ceil(int(d * c["hidden_ratio"] * 2 / 3) / 256)
        self.gate_proj, self.up_proj = linear(d, inner), linear(d, inner)
        self.down_proj = linear(inner, d, scale=(2 * c["num_hidden_layers"]) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x).float()) * self.up_proj(x).float())


class GLALayer(nn.Module):
    def __init__(self, c: dict[str, Any], index: int) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(c["hidden_size"], c["norm_eps"])
        self.attn = GLAAttention(c)
        self.mlp_norm = RMSNorm(c["hidden_size"], c["norm_eps"])
        self.mlp = SwiGLU(c)

    def forward(self, x: Tensor, first: Tensor | None) -> tuple[Tensor, None]:
        x = x + self.attn(self.attn_norm(x)).float()
        return x + self.mlp(self.mlp_norm(x)).float(), None


class MambaMixer(nn.Module):
    """Mamba's block: gated branch, causal convolution of width 4, selective scan."""

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        d, inner, self.states = c["hidden_size"], c["intermediate_size"], c["state_size"]
        self.rank = c["time_step_rank"]
        self.in_proj = linear(d, 2 * inner)
        self.conv1d = nn.Conv1d(inner, inner, c["conv_kernel"], groups=inner, padding=c["conv_kernel"] - 1)
        self.x_proj = linear(inner, self.rank + 2 * self.states)
        self.dt_proj = linear(self.rank, inner, scale=0.5, bias=True)
        self.out_proj = linear(inner, d, scale=c["num_hidden_layers"] ** -0.5)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, self.states + 1)).repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        low, high = math.log(c["time_step_min"]), math.log(c["time_step_max"])
        step = torch.exp(torch.rand(inner) * (high - low) + low).clamp(min=c["time_step_floor"])
        with torch.no_grad():
            self.dt_proj.bias.copy_(torch.log(torch.expm1(step)))

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.in_proj(x).float().chunk(2, -1)
        taps, width = self.conv1d.weight[:, 0], self.conv1d.weight.shape[-1]
        # Shifted sums instead of a grouped convolution, which has a slow backward pass on CPUs.
        padded = F.pad(x, (0, 0, width - 1, 0))
        length = x.shape[1]
        x = self.conv1d.bias + sum(padded[:, i : i + length] * taps[:, i] for i in range(width))
        x = F.silu(x)
        dt, b, c = self.x_proj(x).float().split([self.rank, self.states, self.states], -1)
        dt = F.softplus(F.linear(dt, self.dt_proj.weight).float() + self.dt_proj.bias)
        y = selective_scan(x, dt, -torch.exp(self.A_log), b.contiguous(), c.contiguous())
        return self.out_proj((y + x * self.D) * F.silu(gate))


class MambaLayer(nn.Module):
    def __init__(self, c: dict[str, Any], index: int) -> None:
        super().__init__()
        self.norm = RMSNorm(c["hidden_size"], c["layer_norm_epsilon"])
        self.mixer = MambaMixer(c)

    def forward(self, x: Tensor, first: Tensor | None) -> tuple[Tensor, None]:
        return x + self.mixer(self.norm(x)).float(), None


class Backbone(nn.Module):
    """Embeddings, layers and the last norm, under the names of the family (``norm`` or ``norm_f``)."""

    def __init__(self, c: dict[str, Any]) -> None:
        super().__init__()
        family, d = c["model_type"], c["hidden_size"]
        layer = {"gla": GLALayer, "mamba": MambaLayer, "rwkv7": RWKV7Layer}[family]
        self.embeddings = nn.Embedding(c["vocab_size"], d)
        nn.init.normal_(self.embeddings.weight, std=0.02 if c.get("tie_word_embeddings") else 0.1)
        if family == "gla":
            # A part common to all tokens gives queries and keys a constant part, so that from the first step
            # there is attention by distance alone; the scale keeps the token visible through the layers.
            nn.init.normal_(self.embeddings.weight, std=0.4)
            nn.init.constant_(self.embeddings.weight[:, :16], 0.4)
        self.layers = nn.ModuleList(layer(c, index) for index in range(c["num_hidden_layers"]))
        if family == "mamba":
            self.norm_f = RMSNorm(d, c["layer_norm_epsilon"])
        else:
            self.norm = nn.LayerNorm(d, c["norm_eps"]) if family == "rwkv7" else RMSNorm(d, c["norm_eps"])

    def forward(self, ids: Tensor) -> Tensor:
        x, first = self.embeddings(ids), None
        for layer in self.layers:
            x, first = layer(x, first)
        return (self.norm_f if hasattr(self, "norm_f") else self.norm)(x)


class LanguageModel(nn.Module):
    """Token ids [B, T] to logits [B, T, vocabulary]; the prefix of its names is the family's own."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.prefix = "backbone" if config["model_type"] == "mamba" else "model"
        self.add_module(self.prefix, Backbone(config))
        if not config.get("tie_word_embeddings", config["model_type"] == "mamba"):
            self.lm_head = linear(config["hidden_size"], config["vocab_size"], scale=0.3)

    def forward(self, ids: Tensor) -> Tensor:
        backbone = getattr(self, self.prefix)
        head = self.lm_head.weight if hasattr(self, "lm_head") else backbone.embeddings.weight
        return F.linear(backbone(ids), head)
