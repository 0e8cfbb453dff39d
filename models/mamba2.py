"""Mamba-2 (Dao and Gu 2024), in the layouts of transformers, flash-linear-attention and the original state-spaces code.

All name the same tensors, but for the embedding and for how the config is written.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ostinato.kernels import rows
from ostinato.kernels.conv import causal_conv
from ostinato.kernels.linear import Linear
from ostinato.kernels.packed import Packed
from ostinato.kernels.recurrence import recurrence
from ostinato.models.checkpoint import Checkpoint
from ostinato.models.layers import RMSNorm, WeightReader
from ostinato.models.mamba2_config import Mamba2Config, read_hf_config, read_original_config
from ostinato.models.mamba_backbone import MambaBackbone


@dataclass(frozen=True, slots=True)
class Mamba2Mixer:
    """The block of section 7 of the paper. rate: [heads], which is A = -exp(A_log)."""

    config: Mamba2Config
    in_proj: Linear
    conv_weight: Tensor  # [width, channels]
    conv_bias: Tensor | None
    rate: Tensor
    step_bias: Tensor
    skip: Tensor
    norm: RMSNorm | None  # [groups, inner / groups]
    out_proj: Linear
    norm_first: bool = False  # the norm before the gate
    input_scale: Tensor | None = None  # of what in_proj computes
    output_scale: float = 1.0

    def __call__(self, u: Tensor, batch: Packed, conv: Tensor, ssm: Tensor, residual: Tensor) -> Tensor:
        """u: [T, hidden]; conv: [slots, width - 1, channels]; ssm: [slots, heads, head, state]; residual: [T, hidden].

        Returns residual and output together: [T, hidden] fp32.
        """
        c, shared = self.config, (self.config.groups, self.config.state_size)
        projected = self.in_proj(u)
        if self.input_scale is not None:
            projected = projected * self.input_scale
        z, mixed, step = projected.split([c.inner, c.channels, c.heads], dim=-1)
        mixed = causal_conv(mixed, self.conv_weight, self.conv_bias, conv, batch)
        x, b, q = mixed.split([c.inner, c.groups * c.state_size, c.groups * c.state_size], dim=-1)
        step, step_bias = self._limited(step)
        y = recurrence(
            q.unflatten(-1, shared),
            b.unflatten(-1, shared),
            x.unflatten(-1, (c.heads, c.head)),
            ssm,
            batch,
            rate=self.rate,
            step=step,
            step_bias=step_bias,
            skip=self.skip,
            gate=None if self._gated_by_norm else z.unflatten(-1, (c.heads, c.head)),
        )
        if self.norm is not None:
            gate = z if self._gated_by_norm else None
            dtype = self.out_proj.dtype if self.output_scale == 1 else torch.float32
            y = self.norm(y.view(-1, *self.norm.weight.shape), dtype, gate=gate)
        y = y.flatten(1)
        return self.out_proj(y if self.output_scale == 1 else y * self.output_scale, residual)

    @property
    def _gated_by_norm(self) -> bool:
        return self.norm is not None and self.norm_first

    def _limited(self, step: Tensor) -> tuple[Tensor, Tensor | None]:
        """The step size before softplus, with its bias; or, where limits are set, the size within them.

        They hold for every token, as in training; the original code forgets them when it decodes token by token.
        """
        low, high = self.config.step_limits
        if low <= 0 and high == math.inf:
            return step, self.step_bias
        return rows.softplus(step + self.step_bias).clamp(low, high), None


def read_mixer(read: WeightReader, name: str, c: Mamba2Config, *, normed: bool = True) -> Mamba2Mixer:
    """The layer whose tensors begin with `name`. Raises CheckpointError, as WeightReader."""
    conv = read.tensor(f"{name}.conv1d.weight", c.channels, 1, c.conv_width)
    return Mamba2Mixer(
        config=c,
        in_proj=_projection(read, f"{name}.in_proj", c.inner + c.channels + c.heads, c.hidden, c),
        conv_weight=conv.squeeze(1).T.contiguous(),
        conv_bias=read.tensor(f"{name}.conv1d.bias", c.channels) if c.conv_bias else None,
        rate=read.tensor(f"{name}.A_log", c.heads).exp().neg(),
        step_bias=read.tensor(f"{name}.dt_bias", c.heads),
        skip=read.tensor(f"{name}.D", c.heads),
        norm=RMSNorm(read.tensor(f"{name}.norm.weight", c.inner).view(c.groups, -1), c.norm_eps) if normed else None,
        out_proj=_projection(read, f"{name}.out_proj", c.hidden, c.inner, c),
    )


def _projection(read: WeightReader, name: str, out: int, into: int, c: Mamba2Config) -> Linear:
    return read.linear(f"{name}.weight", out, into, bias=f"{name}.bias" if c.projection_bias else None)


def load_hf(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> MambaBackbone:
    """The layout of transformers' Mamba2ForCausalLM, and of flash-linear-attention's."""
    return MambaBackbone("Mamba-2", checkpoint, read_hf_config(checkpoint), read_mixer, device, dtype)


def load_original(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> MambaBackbone:
    """The layout of the state-spaces/mamba repository."""
    return MambaBackbone("Mamba-2", checkpoint, read_original_config(checkpoint), read_mixer, device, dtype)
