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
from parallel import dplr, dplr_naive, selective_scan
from torch import Tensor, nn

VOCABULARY = 2048
_SHARED = {
    "bos_token_id": 0,
    "eos_token_id": 0,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": VOCABULARY,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "gla": _SHARED
    | {
        "architectures": ["GLAForCausalLM"],
        "attn": None,
        "attn_mode": "chunk",
        "clamp_min": None,
        "conv_size": 4,
        "elementwise_affine": True,
        "expand_k": 0.5,
        "expand_v": 1,
        "feature_map": None,
        "fuse_cross_entropy": True,
        "fuse_norm": True,
        "gate_logit_normalizer": 16,
        "hidden_act": "swish",
        "hidden_ratio": 2,
        "hidden_size": 256,
        "initializer_range": 0.02,
        "intermediate_size": 512,
        "max_position_embeddings": 2048,
        "model_type": "gla",
        "norm_eps": 1e-6,
        "num_heads": 2,
        "num_hidden_layers": 5,
        "num_kv_heads": None,
        "tie_word_embeddings": False,
        "use_gk": True,
        "use_gv": False,
        "use_output_gate": True,
        "use_short_conv": False,
    },
    "mamba": _SHARED
    | {
        "architectures": ["MambaForCausalLM"],
        "conv_kernel": 4,
        "expand": 2,
        "hidden_act": "silu",
        "hidden_size": 256,
        "initializer_range": 0.02,
        "intermediate_size": 512,
        "layer_norm_epsilon": 1e-5,
        "model_type": "mamba",
        "num_hidden_layers": 8,
        "pad_token_id": 0,
        "rescale_prenorm_residual": False,
        "residual_in_fp32": True,
        "state_size": 16,
        "tie_word_embeddings": True,
        "time_step_floor": 0.0001,
        "time_step_init_scheme": "random",
        "time_step_max": 0.1,
        "time_step_min": 0.001,
        "time_step_rank": 16,
        "time_step_scale": 1.0,
        "use_bias": False,
        "use_conv_bias": True,
    },
    "rwkv7": _SHARED
    | {
        "a_low_rank_dim": 32,
        "architectures": ["RWKV7ForCausalLM"],
        "attn": None,
        "attn_mode": "chunk",
        "decay_low_rank_dim": 32,
        "fuse_cross_entropy": True,
        "fuse_norm": False,
        "gate_low_rank_dim": 64,
        "head_dim": 64,
        "hidden_act": "sqrelu",
        "hidden_ratio": 4.0,
        "hidden_size": 256,
        "initializer_range": 0.006,
        "intermediate_size": 1024,
        "max_position_embeddings": 2048,
        "model_type": "rwkv7",
        "norm_bias": True,
        "norm_eps": 1e-5,
        "norm_first": True,
        "num_heads": None,
        "num_hidden_layers": 4,
        "tie_word_embeddings": False,
        "v_low_rank_dim": 32,
        "value_dim": [256] * 4,
    },
}


def linear(inputs: int, outputs: int, *, scale: float = 1.0, bias: bool = False) -> nn.Linear:
    """A projection whose outputs have ``scale`` times the size of its inputs."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.normal_(layer.weight, std=scale * inputs**-0.5)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class RMSNorm(nn.Module):
    """Root mean square norm over the last dimension, in fp32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = x.float()
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


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
