"""DeltaNet (Yang et al. 2024), in the flash-linear-attention layout."""

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
from ostinato.models.fla_mixers import Reading, ShortConvolution, delta_state, read_convolution
from ostinato.models.layers import RMSNorm, WeightReader


@dataclass(frozen=True, slots=True)
class DeltaNetConfig:
    """Sizes in elements. `key`, `value`: per head; `largest_beta`: 2 where eigenvalues may be negative, otherwise 1."""

    shell: Shell
    heads: int
    key: int
    value: int
    conv_width: int
    largest_beta: int
    output_gate: bool

    @property
    def channels(self) -> int:
        """Width of what the convolution reads: q, k and v."""
        return self.heads * (2 * self.key + self.value)


def read_config(checkpoint: Checkpoint) -> DeltaNetConfig:
    """fla's DeltaNetConfig. Options that change the mathematics and are not implemented are refused by name."""
    config = ConfigReader(checkpoint.config, checkpoint.folder / "config.json")
    for key, *served in (
        ("use_short_conv", True),
        ("use_beta", True),
        ("qk_norm", "l2"),
        ("qk_activation", "silu"),
    ):
        config.only(key, *served)
    shell, heads = read_shell(checkpoint), config.integer("num_heads", 16)
    return DeltaNetConfig(
        shell=shell,
        heads=heads,
        key=config.divide("num_heads", config.exact_fraction_of(shell.hidden, "expand_k", 1.0), heads),
        value=config.divide("num_heads", config.exact_fraction_of(shell.hidden, "expand_v", 1.0), heads),
        conv_width=config.integer("conv_size", 4),
        largest_beta=2 if config.flag("allow_neg_eigval", False) else 1,
        output_gate=config.flag("use_gate", False),
    )


@dataclass(frozen=True, slots=True)
class DeltaNetMixer:
    """Section 3 of the paper. `inputs` joins q, k, v, beta and, if there is one, the output gate.

    With beta up to 2 the transition I - beta k k^T has eigenvalues from -1 to 1 (Grazzi et al. 2024).
    Its state is `recurrent`: [slots, heads, value, key], and `conv`: [slots, width - 1, channels].
    """

    config: DeltaNetConfig
    inputs: Linear
    convolution: ShortConvolution
    norm: RMSNorm
    output: Linear

    def __call__(self, u: Tensor, reading: Reading, state: StateTensors, residual: Tensor) -> Tensor:
        """See `Mixer`."""
        c = self.config
        keys, values = c.heads * c.key, c.heads * c.value
        mixed, beta, swish = self.inputs(u).split([c.channels, c.heads, values * c.output_gate], dim=-1)
        q, k, v = self.convolution(mixed, reading.batch, state["conv"]).split([keys, keys, values], dim=-1)
        o = recurrence(
            q.unflatten(-1, (c.heads, c.key)),
            k.unflatten(-1, (c.heads, c.key)),
            v.unflatten(-1, (c.heads, c.value)),
            state["recurrent"],
            reading.batch,
            beta=c.largest_beta * rows.sigmoid(beta),
            normalize=True,
            scale=c.key**-0.5,
        )
        o = self.norm(o, self.output.dtype, gate=swish if c.output_gate else None)
        return self.output(o.flatten(1), residual)


def _read_mixer(read: WeightReader, name: str, c: DeltaNetConfig) -> DeltaNetMixer:
    sizes = {"q": c.heads * c.key, "k": c.heads * c.key, "v": c.heads * c.value}
    others = {"b": c.heads, **({"g": c.heads * c.value} if c.output_gate else {})}
    projections = [(f"{name}.{part}_proj.weight", size) for part, size in (sizes | others).items()]
    return DeltaNetMixer(
        config=c,
        inputs=read.joined(projections, c.shell.hidden),
        convolution=read_convolution(read, name, sizes, c.conv_width),
        norm=RMSNorm(read.tensor(f"{name}.o_norm.weight", c.value), c.shell.norm_eps),
        output=read.linear(f"{name}.o_proj.weight", c.shell.hidden, c.heads * c.value),
    )


def load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> FLAModel:
    """The layout of flash-linear-attention's DeltaNetForCausalLM.

    State per layer: `recurrent` [heads, value, key] fp32 and the `conv` tail [width - 1, channels].
    """
    c, read = read_config(checkpoint), WeightReader(checkpoint, device, dtype)
    state = delta_state(c.heads, c.value, c.key, c.conv_width, c.channels, dtype)
    family = Family("DeltaNet", c.shell, state, lambda name, _: _read_mixer(read, name, c))
    return FLAModel(checkpoint.architecture, family, read)
