"""Gated DeltaNet (Yang et al. 2024, Gated Delta Networks), in the flash-linear-attention layout."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ostinato.kernels import rows
from ostinato.kernels.linear import Linear
from ostinato.kernels.recurrence import recurrence
from ostinato.models.base import StateTensors
from ostinato.models.checkpoint import Checkpoint
from ostinato.models.config import ConfigReader
from ostinato.models.fla import Family, FLAModel, Shell, read_shell
from ostinato.models.fla_mixers import Reading, ShortConvolution, delta_state, read_convolution, sigmoid_gated
from ostinato.models.layers import RMSNorm, WeightReader


@dataclass(frozen=True, slots=True)
class GatedDeltaNetConfig:
    """Sizes in elements. `heads`: of q and k, each shared by consecutive value heads; `key`, `value`: per head.

    `largest_beta`: 2 where eigenvalues may be negative, otherwise 1. `sigmoid_gate`: of the output; otherwise SiLU.
    """

    shell: Shell
    heads: int
    value_heads: int
    key: int
    value: int
    conv_width: int
    largest_beta: int
    output_gate: bool
    sigmoid_gate: bool

    @property
    def joined(self) -> tuple[int, int, int]:
        """Widths of q, k and v, which the convolution reads."""
        return self.heads * self.key, self.heads * self.key, self.value_heads * self.value


def read_config(checkpoint: Checkpoint) -> GatedDeltaNetConfig:
    """fla's GatedDeltaNetConfig. Options that change the mathematics and are not implemented are refused by name."""
    config = ConfigReader(checkpoint.config, checkpoint.folder / "config.json")
    config.only("use_short_conv", True)
    config.only("output_gate_activation", "swish", "silu", "sigmoid")
    heads, key = config.integer("num_heads", 6), config.integer("head_dim", 256)
    value_heads = config.integer("num_v_heads", heads)
    config.divide("num_heads", value_heads, heads)
    output_gate = config.flag("use_gate", True)
    return GatedDeltaNetConfig(
        shell=read_shell(checkpoint, layers=21),
        heads=heads,
        value_heads=value_heads,
        key=key,
        value=config.exact_fraction_of(key, "expand_v", 2.0),
        conv_width=config.integer("conv_size", 4),
        largest_beta=2 if config.flag("allow_neg_eigval", False) else 1,
        output_gate=output_gate,
        sigmoid_gate=output_gate and checkpoint.config.get("output_gate_activation") == "sigmoid",
    )


@dataclass(frozen=True, slots=True)
class GatedDeltaNetMixer:
    """Section 3 of the paper. `inputs` joins q, k, v, the decay, beta and, if there is one, the output gate.

    rate: [value heads], which is -exp(A_log). With beta up to 2 eigenvalues may be negative (Grazzi et al. 2024).
    Its state is `recurrent`: [slots, value heads, value, key], and `conv`: [slots, width - 1, channels].
    """

    config: GatedDeltaNetConfig
    inputs: Linear
    convolution: ShortConvolution
    rate: Tensor
    step_bias: Tensor
    norm: RMSNorm
    output: Linear

    def __call__(self, u: Tensor, reading: Reading, state: StateTensors, residual: Tensor) -> Tensor:
        """See `Mixer`."""
        c = self.config
        values = c.value_heads * c.value
        mixed, step, beta, gate = self.inputs(u).split(
            [sum(c.joined), c.value_heads, c.value_heads, values * c.output_gate], dim=-1
        )
        q, k, v = self.convolution(mixed, reading.batch, state["conv"]).split(c.joined, dim=-1)
        o = recurrence(
            q.unflatten(-1, (c.heads, c.key)),
            k.unflatten(-1, (c.heads, c.key)),
            v.unflatten(-1, (c.value_heads, c.value)),
            state["recurrent"],
            reading.batch,
            log_decay=self.rate * rows.softplus(step + self.step_bias),
            beta=c.largest_beta * rows.sigmoid(beta),
            normalize=True,
            scale=c.key**-0.5,
        )
        return self.output(self._gated(o, gate).flatten(1), residual)

    def _gated(self, o: Tensor, gate: Tensor) -> Tensor:
        if self.config.sigmoid_gate:
            return sigmoid_gated(self.norm, o, gate)
        return self.norm(o, self.output.dtype, gate=gate if self.config.output_gate else None)


def _read_mixer(read: WeightReader, name: str, c: GatedDeltaNetConfig) -> GatedDeltaNetMixer:
    sizes = dict(zip("qkv", c.joined, strict=True))
    others = {"a": c.value_heads, "b": c.value_heads, **({"g": c.joined[2]} if c.output_gate else {})}
    projections = [(f"{name}.{part}_proj.weight", size) for part, size in (sizes | others).items()]
    return GatedDeltaNetMixer(
        config=c,
        inputs=read.joined(projections, c.shell.hidden),
        convolution=read_convolution(read, name, sizes, c.conv_width),
        rate=read.tensor(f"{name}.A_log", c.value_heads).exp().neg(),
        step_bias=read.tensor(f"{name}.dt_bias", c.value_heads),
        norm=RMSNorm(read.tensor(f"{name}.o_norm.weight", c.value), c.shell.norm_eps),
        output=read.linear(f"{name}.o_proj.weight", c.shell.hidden, c.joined[2]),
    )


def load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> FLAModel:
    """The layout of flash-linear-attention's GatedDeltaNetForCausalLM.

    State per layer: `recurrent` [value heads, value, key] fp32 and the `conv` tail [width - 1, channels].
    """
    c, read = read_config(checkpoint), WeightReader(checkpoint, device, dtype)
    state = delta_state(c.value_heads, c.value, c.key, c.conv_width, sum(c.joined), dtype)
    family = Family("Gated DeltaNet", c.shell, state, lambda name, _: _read_mixer(read, name, c))
    return FLAModel(checkpoint.architecture, family, read)
