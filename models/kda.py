"""Kimi Delta Attention (Kimi Team 2025, Kimi Linear), in the flash-linear-attention layout."""

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
class KDAConfig:
    """Sizes in elements. `heads`: of q and k, each shared by consecutive value heads; `key`, `value`: per head.

    `decay_minimum`: which the logarithm of a decay approaches, or None for no bound.
    """

    shell: Shell
    heads: int
    value_heads: int
    key: int
    value: int
    conv_width: int
    largest_beta: int
    decay_minimum: float | None

    @property
    def joined(self) -> tuple[int, int, int]:
        """Widths of q, k and v, which the convolution reads."""
        return self.heads * self.key, self.heads * self.key, self.value_heads * self.value


def read_config(checkpoint: Checkpoint) -> KDAConfig:
    """fla's KDAConfig. Options that change the mathematics and are not implemented are refused by name.

    `safe_gate` chooses a kernel of fla's and says nothing about the model.
    """
    config = ConfigReader(checkpoint.config, checkpoint.folder / "config.json")
    config.only("use_short_conv", True)
    heads, key = config.integer("num_heads", 16), config.integer("head_dim", 128)
    value_heads = config.integer("num_v_heads", heads)
    config.divide("num_heads", value_heads, heads)
    return KDAConfig(
        shell=read_shell(checkpoint),
        heads=heads,
        value_heads=value_heads,
        key=key,
        value=config.exact_fraction_of(key, "expand_v", 1.0),
        conv_width=config.integer("conv_size", 4),
        largest_beta=2 if config.flag("allow_neg_eigval", False) else 1,
        decay_minimum=config.optional_number("lower_bound"),
    )


@dataclass(frozen=True, slots=True)
class KDAMixer:
    """Section 3 of the report. `inputs` joins q, k, v, beta and the first factors of the decay and the output gate.

    rate: [value heads, 1], which is exp(A_log); step_bias: [value heads, key].
    Its state is `recurrent`: [slots, value heads, value, key], and `conv`: [slots, width - 1, channels].
    """

    config: KDAConfig
    inputs: Linear
    convolution: ShortConvolution
    decay: Linear
    rate: Tensor
    step_bias: Tensor
    gate: Linear
    norm: RMSNorm
    output: Linear

    def __call__(self, u: Tensor, reading: Reading, state: StateTensors, residual: Tensor) -> Tensor:
        """See `Mixer`."""
        c = self.config
        mixed, beta, decay, gate = self.inputs(u).split([sum(c.joined), c.value_heads, c.value, c.value], dim=-1)
        q, k, v = self.convolution(mixed, reading.batch, state["conv"]).split(c.joined, dim=-1)
        o = recurrence(
            q.unflatten(-1, (c.heads, c.key)),
            k.unflatten(-1, (c.heads, c.key)),
            v.unflatten(-1, (c.value_heads, c.value)),
            state["recurrent"],
            reading.batch,
            log_decay=self._log_decay(self.decay(decay)),
            beta=c.largest_beta * rows.sigmoid(beta),
            normalize=True,
            scale=c.key**-0.5,
        )
        return self.output(sigmoid_gated(self.norm, o, self.gate(gate)).flatten(1), residual)

    def _log_decay(self, x: Tensor) -> Tensor:
        """x: [T, value heads * key]. Returns [T, value heads, key] fp32."""
        step = x.unflatten(-1, self.step_bias.shape) + self.step_bias
        if self.config.decay_minimum is None:
            return -self.rate * rows.softplus(step)
        return self.config.decay_minimum * rows.sigmoid(self.rate * step)


def _read_mixer(read: WeightReader, name: str, c: KDAConfig) -> KDAMixer:
    hidden, keys = c.shell.hidden, c.value_heads * c.key
    sizes = dict(zip("qkv", c.joined, strict=True))
    projections = [(f"{name}.{part}_proj.weight", size) for part, size in (sizes | {"b": c.value_heads}).items()]
    projections += [(f"{name}.{part}_proj.0.weight", c.value) for part in "fg"]
    return KDAMixer(
        config=c,
        inputs=read.joined(projections, hidden),
        convolution=read_convolution(read, name, sizes, c.conv_width),
        decay=read.linear(f"{name}.f_proj.1.weight", keys, c.value),
        rate=read.tensor(f"{name}.A_log", c.value_heads).exp().unsqueeze(-1),
        step_bias=read.tensor(f"{name}.dt_bias", keys).view(c.value_heads, c.key),
        gate=read.linear(f"{name}.g_proj.1.weight", c.joined[2], c.value, bias=f"{name}.g_proj.1.bias"),
        norm=RMSNorm(read.tensor(f"{name}.o_norm.weight", c.value), c.shell.norm_eps),
        output=read.linear(f"{name}.o_proj.weight", hidden, c.joined[2]),
    )


def load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> FLAModel:
    """The layout of flash-linear-attention's KDAForCausalLM.

    State per layer: `recurrent` [value heads, value, key] fp32 and the `conv` tail [width - 1, channels].
    """
    c, read = read_config(checkpoint), WeightReader(checkpoint, device, dtype)
    state = delta_state(c.value_heads, c.value, c.key, c.conv_width, sum(c.joined), dtype)
    family = Family("KDA", c.shell, state, lambda name, _: _read_mixer(read, name, c))
    return FLAModel(checkpoint.architecture, family, read)
