"""RWKV-6 "Finch" (Peng et al. 2024): RWKV-5 whose token shift and decay depend on the token.

Read in the original layout, and in that of the Rwkv6ForCausalLM which repositories bring along as code;
`rwkv6_fla.py` reads flash-linear-attention's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ostinato.kernels import rows
from ostinato.kernels.linear import Linear
from ostinato.kernels.packed import Packed
from ostinato.kernels.shift import token_shift
from ostinato.models.checkpoint import Checkpoint
from ostinato.models.layers import LowRank, WeightReader
from ostinato.models.rwkv5 import Inputs, TimeMix5, read_time_mix, state_shape
from ostinato.models.rwkv_blocks import RWKV, Version, read_mixes
from ostinato.models.rwkv_layouts import TRANSFORMERS, Renamed, RWKVConfig, read_hf_config, read_original_config


@dataclass(frozen=True, slots=True)
class DependentShift:
    """Section 4 of the paper: `ddlerp`, and a decay by low-rank projections.

    mix: [2, C], the constant share of the token before, and ones. down: to the low ranks of all five inputs, side by
    side in the order of `up`, which gives the shares for w, k, v, r and g.
    """

    mix: Tensor
    down: Linear
    up: Sequence[Linear]
    decay: LowRank
    heads: int

    def __call__(self, x: Tensor, batch: Packed, last: Tensor) -> Inputs:
        """See `ostinato.models.rwkv5.Shift`."""
        mixed, before = token_shift(x, self.mix, last, batch)
        low = rows.tanh(self.down(mixed)).unflatten(-1, (len(self.up), -1))
        shares = torch.stack([up(low[:, i]) for i, up in enumerate(self.up)])
        now = x.float()
        # Product and sum apart: fused, their bits would depend on where in a vector an element lies.
        xw, xk, xv, xr, xg = shares.mul_(before.float() - now).add_(now).to(x.dtype)
        log_decay = rows.exp(self.decay(xw, rows.tanh)).neg_()
        return xk, xv, xr, xg, log_decay.unflatten(-1, (self.heads, -1))


def shift_mix(share: Tensor) -> Tensor:
    """`DependentShift.mix` from the constant share, [C]."""
    return torch.stack([share, torch.ones_like(share)])


def _read_time_mix(read: WeightReader, name: str, c: RWKVConfig) -> TimeMix5:
    return read_time_mix(read, name, _read_shift(read, name, c), c)


def _read_shift(read: WeightReader, name: str, c: RWKVConfig) -> DependentShift:
    """Low-rank matrices are stored [in, out]; their ranks are read from the shapes."""
    inputs = "wkvrg"
    rank = read.source.shape(f"{name}.time_maa_w2", 3)[1]
    decay_rank = read.source.shape(f"{name}.time_decay_w1", 2)[1]
    up = read.matrix(f"{name}.time_maa_w2", len(inputs), rank, c.hidden)
    constants = read_mixes(read, f"{name}.time_maa", inputs, c.hidden)
    return DependentShift(
        mix=shift_mix(read.vector(f"{name}.time_maa_x", c.hidden)),
        down=read.projection(read.matrix(f"{name}.time_maa_w1", c.hidden, len(inputs) * rank).T),
        up=[read.projection(up[i].T, constants[i]) for i in range(len(inputs))],
        decay=LowRank(
            down=read.projection(read.matrix(f"{name}.time_decay_w1", c.hidden, decay_rank).T),
            up=read.projection(
                read.matrix(f"{name}.time_decay_w2", decay_rank, c.keys).T,
                read.vector(f"{name}.time_decay", c.keys),
            ),
        ),
        heads=c.heads,
    )


VERSION = Version("RWKV-6", "time_maa", _read_time_mix, state_shape)


def load_original(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> RWKV:
    """The layout of the files published at BlinkDL's repositories."""
    config = read_original_config(checkpoint, heads=True)
    return RWKV(VERSION, WeightReader(checkpoint, device, dtype), config, checkpoint.architecture)


def load_hf(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> RWKV:
    """The layout of Rwkv6ForCausalLM."""
    config = read_hf_config(checkpoint, heads=True)
    read = WeightReader(Renamed(checkpoint, TRANSFORMERS), device, dtype)
    return RWKV(VERSION, read, config, checkpoint.architecture)
