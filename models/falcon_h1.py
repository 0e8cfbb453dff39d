"""Falcon-H1 (Zuo et al. 2025): Mamba-2 and attention side by side in every layer, in transformers' layout.

Its training multiplies most tensors by constants (Yang et al. 2022, mu-parametrisation). Those of a projection's input
are in the weight of the norm before it, where they make no difference but to rounding.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ostinato.kernels import rows
from ostinato.kernels.linear import Linear
from ostinato.kernels.packed import Packed
from ostinato.models.base import StateTensors
from ostinato.models.checkpoint import Checkpoint
from ostinato.models.config import ConfigReader
from ostinato.models.hybrid_backbone import HybridBackbone, read_ends
from ostinato.models.layers import RMSNorm, WeightReader
from ostinato.models.mamba2 import Mamba2Mixer, read_mixer
from ostinato.models.mamba2_hybrid import HybridConfig, read_attention, read_mamba, read_mlp
from ostinato.models.mamba2_hybrid import read_config as read_hybrid_config
from ostinato.models.window import Places, Rotary, WindowAttention


@dataclass(frozen=True, slots=True)
class FalconH1Config:
    """normed: whether Mamba-2's output is normalised, and norm_first: before the gate. The rest are multipliers.

    ssm: of z, x, B, C and the step size; mlp: of the gate and of the output.
    """

    hybrid: HybridConfig
    normed: bool
    norm_first: bool
    embedding: float
    head: float
    key: float
    attention_in: float
    attention_out: float
    ssm_in: float
    ssm_out: float
    ssm: tuple[float, ...]
    mlp: tuple[float, ...]


def read_config(checkpoint: Checkpoint) -> FalconH1Config:
    """transformers' FalconH1Config. Raises CheckpointError, UnsupportedModelError: as ConfigReader and read_config."""
    config = ConfigReader(checkpoint.config, checkpoint.folder / "config.json")
    inner = config.integer("mamba_d_ssm", 1024)
    mamba = read_mamba(config, inner)
    layers = tuple(range(mamba.layers))
    return FalconH1Config(
        hybrid=read_hybrid_config(checkpoint, mamba, layers, layers),
        normed=config.flag("mamba_rms_norm", False),
        norm_first=config.flag("mamba_norm_before_gate", True),
        embedding=config.number("embedding_multiplier", 1.0),
        head=config.number("lm_head_multiplier", 1.0),
        key=config.number("key_multiplier", 1.0),
        attention_in=config.number("attention_in_multiplier", 1.0),
        attention_out=config.number("attention_out_multiplier", 1.0),
        ssm_in=config.number("ssm_in_multiplier", 1.0),
        ssm_out=config.number("ssm_out_multiplier", 1.0),
        ssm=config.numbers("ssm_multipliers", (1.0,) * 5),
        mlp=config.numbers("mlp_multipliers", (1.0,) * 2),
    )


@dataclass(frozen=True, slots=True)
class ScaledMLP:
    """down(m silu(n gate x) * up x). scale: [2 mlp], which is n and then m."""

    gate_up: Linear
    down: Linear
    scale: Tensor

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        """x: [T, hidden]; residual: [T, hidden] fp32, added to the result. Returns [T, hidden] fp32."""
        return self.down(rows.swiglu(self.gate_up(x) * self.scale, self.down.dtype), residual)


@dataclass(frozen=True, slots=True)
class FalconH1Layer:
    """Both mixers read the same norm, each with its own multiplier, and add to the residual connection."""

    index: int
    ssm_norm: RMSNorm
    ssm: Mamba2Mixer
    attention_norm: RMSNorm
    attention: WindowAttention
    mlp_norm: RMSNorm
    mlp: ScaledMLP

    def __call__(self, x: Tensor, batch: Packed, places: Places, pool: StateTensors, dtype: torch.dtype) -> Tensor:
        """x: [T, hidden] fp32; pool: the model's; dtype: of the norms' outputs. Returns [T, hidden] fp32."""
        i, u = self.index, self.attention_norm(x, dtype)
        x = self.ssm(self.ssm_norm(x, dtype), batch, pool["conv"][i], pool["ssm"][i], x)
        x = self.attention(u, batch, places, pool["window_keys"][i], pool["window_values"][i], x)
        return self.mlp(self.mlp_norm(x, dtype), x)


def _read_layer(read: WeightReader, layer: int, c: FalconH1Config) -> FalconH1Layer:
    name, m = f"model.layers.{layer}", c.hybrid.mamba
    norm = read.tensor(f"{name}.input_layernorm.weight", m.hidden)
    ssm = read_mixer(read, f"{name}.mamba", m, normed=c.normed)
    mlp = read_mlp(read, f"{name}.feed_forward", c.hybrid)
    widths = (m.inner, m.inner, m.groups * m.state_size, m.groups * m.state_size, m.heads)
    return FalconH1Layer(
        index=layer,
        ssm_norm=RMSNorm(norm * c.ssm_in, m.norm_eps),
        ssm=replace(ssm, norm_first=c.norm_first, input_scale=_spread(read, c.ssm, widths), output_scale=c.ssm_out),
        attention_norm=RMSNorm(norm * c.attention_in, m.norm_eps),
        attention=read_attention(read, f"{name}.self_attn", c.hybrid, key_scale=c.key, output_scale=c.attention_out),
        mlp_norm=RMSNorm(read.tensor(f"{name}.pre_ff_layernorm.weight", m.hidden), m.norm_eps),
        mlp=ScaledMLP(mlp.gate_up, mlp.down, _spread(read, c.mlp, (c.hybrid.mlp,) * 2)),
    )


def _spread(read: WeightReader, values: tuple[float, ...], widths: tuple[int, ...]) -> Tensor:
    """Each value as often as its width says."""
    parts = [torch.full((width,), value) for value, width in zip(values, widths, strict=True)]
    return torch.cat(parts).to(read.device)


def load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> HybridBackbone:
    """The layout of transformers' FalconH1ForCausalLM."""
    config, read = read_config(checkpoint), WeightReader(checkpoint, device, dtype)
    hybrid, c = config.hybrid, config.hybrid.mamba
    return HybridBackbone(
        family="Falcon-H1",
        architecture=checkpoint.architecture,
        vocab_size=c.vocab_size,
        state=hybrid.state(dtype),
        sizes=hybrid.attention,
        rotary=Rotary(hybrid.rotary_width, hybrid.rope_base, device),
        ends=read_ends(
            read, c, "model.final_layernorm.weight", scale=config.embedding, finish=lambda logits: logits * config.head
        ),
        layers=[_read_layer(read, i, config) for i in range(c.layers)],
        read=read,
    )
