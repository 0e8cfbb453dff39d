"""RetNet (Sun et al. 2023), in the flash-linear-attention layout."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ostinato.kernels.linear import Linear
from ostinato.kernels.recurrence import recurrence
from ostinato.models.base import StateTensors
from ostinato.models.checkpoint import Checkpoint
from ostinato.models.config import ConfigReader
from ostinato.models.fla import Family, FLAModel, Shell, read_shell
from ostinato.models.fla_mixers import Reading
from ostinato.models.gla import read_gated_norm
from ostinato.models.layers import RMSNorm, WeightReader
from ostinato.models.window import Rotary, rotate

ROTARY_BASE = 10000.0  # fixed in the published layers


@dataclass(frozen=True, slots=True)
class RetNetConfig:
    """Sizes in elements. `key`, `value`: per head; `kv_heads`: heads of k and v, each shared by consecutive heads."""

    shell: Shell
    heads: int
    kv_heads: int
    key: int
    value: int
    output_gate: bool


def read_config(checkpoint: Checkpoint) -> RetNetConfig:
    """fla's RetNetConfig. Options that change the mathematics and are not implemented are refused by name."""
    config = ConfigReader(checkpoint.config, checkpoint.folder / "config.json")
    config.only("feature_map", None)
    config.only("use_short_conv", False)
    shell, heads = read_shell(config, hidden_ratio=2), config.integer("num_heads", 8)
    kv_heads = config.integer("num_kv_heads", heads)
    config.divide("num_kv_heads", heads, kv_heads)
    keys = config.exact_fraction_of(shell.hidden, "expand_k", 1.0)
    return RetNetConfig(
        shell=shell,
        heads=heads,
        kv_heads=kv_heads,
        key=2 * config.divide("num_heads", keys, 2 * heads),  # rotary pairs
        value=config.divide("num_heads", config.exact_fraction_of(shell.hidden, "expand_v", 2.0), heads),
        output_gate=config.flag("use_output_gate", True),
    )


@dataclass(frozen=True, slots=True)
class RetNetMixer:
    """Section 2.3 of the paper. `inputs` joins q, k, v and, if there is one, the output gate.

    log_decay: [heads] fp32, the same for all tokens. Its state is `recurrent`: [slots, heads, value, key].
    """

    config: RetNetConfig
    inputs: Linear
    rotary: Rotary
    log_decay: Tensor
    norm: RMSNorm
    output: Linear

    def __call__(self, u: Tensor, reading: Reading, state: StateTensors, residual: Tensor) -> Tensor:
        """See `Mixer`."""
        c = self.config
        qk, v, swish = self.inputs(u).split(
            [(c.heads + c.kv_heads) * c.key, c.kv_heads * c.value, c.heads * c.value * c.output_gate], dim=-1
        )
        qk = rotate(qk.unflatten(-1, (c.heads + c.kv_heads, c.key)), reading.turns[self.rotary])
        q, k = qk.split([c.heads, c.kv_heads], dim=1)
        o = recurrence(
            q,
            k,
            v.unflatten(-1, (c.kv_heads, c.value)),
            state["recurrent"],
            reading.batch,
            log_decay=self.log_decay.expand(u.shape[0], -1),
            scale=c.key**-0.5,
        )
        o = self.norm(o, self.output.dtype, gate=swish if c.output_gate else None)
        return self.output(o.flatten(1), residual)


def log_decays(heads: int, device: torch.device) -> Tensor:
    """Equation 8 of the paper: log(1 - 2^(-5 - head)), [heads] fp32."""
    return torch.log1p(-(2.0 ** (-5 - torch.arange(heads, dtype=torch.float64)))).to(device, torch.float32)


def _read_mixer(read: WeightReader, name: str, c: RetNetConfig, rotary: Rotary) -> RetNetMixer:
    inputs = [
        (f"{name}.q_proj.weight", c.heads * c.key),
        (f"{name}.k_proj.weight", c.kv_heads * c.key),
        (f"{name}.v_proj.weight", c.kv_heads * c.value),
    ]
    if c.output_gate:
        inputs.append((f"{name}.g_proj.weight", c.heads * c.value))
    return RetNetMixer(
        config=c,
        inputs=read.joined(inputs, c.shell.hidden),
        rotary=rotary,
        log_decay=log_decays(c.heads, read.device),
        norm=read_gated_norm(read, name, c.value, c.shell.norm_eps),
        output=read.linear(f"{name}.o_proj.weight", c.shell.hidden, c.heads * c.value),
    )


def load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> FLAModel:
    """The layout of flash-linear-attention's RetNetForCausalLM.

    State per layer: `recurrent` [heads, value, key] fp32; and once `position`, the number of tokens read.
    """
    c, read = read_config(checkpoint), WeightReader(checkpoint, device, dtype)
    rotary = Rotary(c.key, ROTARY_BASE, device)
    state = {"recurrent": ((c.heads, c.value, c.key), torch.float32)}
    family = Family("RetNet", c.shell, state, lambda name, _: _read_mixer(read, name, c, rotary), (rotary,))
    return FLAModel(checkpoint.architecture, family, read)
