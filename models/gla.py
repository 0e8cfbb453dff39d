"""Gated Linear Attention (Yang et al. 2023), in the flash-linear-attention layout."""

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
from ostinato.models.fla_mixers import Reading
from ostinato.models.layers import RMSNorm, WeightReader

GATE_RANK = 16  # fixed in the published layers, as is the next
GATE_NORMALIZER = 16


@dataclass(frozen=True, slots=True)
class GLAConfig:
    """Sizes in elements. `key`, `value`: per head; `kv_heads`: heads that share one key and value."""

    shell: Shell
    heads: int
    kv_heads: int
    key: int
    value: int
    gate_minimum: float | None
    output_gate: bool


def read_config(checkpoint: Checkpoint) -> GLAConfig:
    """fla's GLAConfig. Options that change the mathematics and are not implemented are refused by name."""
    config = ConfigReader(checkpoint.config, checkpoint.folder / "config.json")
    for key, *served in (
        ("feature_map", None),
        ("use_short_conv", False),
        ("use_gv", False),
        ("gate_logit_normalizer", GATE_NORMALIZER),
    ):
        config.only(key, *served)
    shell, heads = read_shell(config), config.integer("num_heads", 4)
    kv_heads = config.integer("num_kv_heads", heads)
    config.divide("num_kv_heads", heads, kv_heads)
    return GLAConfig(
        shell=shell,
        heads=heads,
        kv_heads=kv_heads,
        key=config.divide("num_heads", config.exact_fraction_of(shell.hidden, "expand_k", 0.5), heads),
        value=config.divide("num_heads", config.exact_fraction_of(shell.hidden, "expand_v", 1.0), heads),
        gate_minimum=config.optional_number("clamp_min"),
        output_gate=config.flag("use_output_gate", True),
    )


@dataclass(frozen=True, slots=True)
class GLAMixer:
    """Section 4 of the paper. `inputs` joins q, k, v, the gate's first factor and, if there is one, the output gate.

    Its state is `recurrent`: [slots, heads, value, key].
    """

    config: GLAConfig
    inputs: Linear
    gate: Linear
    norm: RMSNorm
    output: Linear

    def __call__(self, u: Tensor, reading: Reading, state: StateTensors, residual: Tensor) -> Tensor:
        """See `Mixer`."""
        c = self.config
        kv = (c.kv_heads * c.key, c.kv_heads * c.value)
        q, k, v, low, swish = self.inputs(u).split(
            [c.heads * c.key, *kv, GATE_RANK, c.heads * c.value * c.output_gate], dim=-1
        )
        o = recurrence(
            q.unflatten(-1, (c.heads, c.key)),
            k.unflatten(-1, (c.kv_heads, c.key)),
            v.unflatten(-1, (c.kv_heads, c.value)),
            state["recurrent"],
            reading.batch,
            log_decay=self._log_decay(low).unflatten(-1, (c.kv_heads, c.key)),
            scale=c.key**-0.5,
        )
        o = self.norm(o, self.output.dtype, gate=swish if c.output_gate else None)
        return self.output(o.flatten(1), residual)

    def _log_decay(self, low: Tensor) -> Tensor:
        log_decay = rows.log_sigmoid(self.gate(low), 1 / GATE_NORMALIZER)
        return log_decay if self.config.gate_minimum is None else log_decay.clamp(min=self.config.gate_minimum)


def read_gated_norm(read: WeightReader, name: str, size: int, eps: float) -> RMSNorm:
    """The norm of heads. fla fuses it with the output gate under a name of its own; the tensor is the same."""
    fused = read.source.has(f"{name}.g_norm_swish_gate.weight")
    return RMSNorm(read.tensor(f"{name}.g_norm_swish_gate.weight" if fused else f"{name}.g_norm.weight", size), eps)


def _read_mixer(read: WeightReader, name: str, c: GLAConfig) -> GLAMixer:
    hidden = c.shell.hidden
    inputs = [
        (f"{name}.q_proj.weight", c.heads * c.key),
        (f"{name}.k_proj.weight", c.kv_heads * c.key),
        (f"{name}.v_proj.weight", c.kv_heads * c.value),
        (f"{name}.gk_proj.0.weight", GATE_RANK),
    ]
    if c.output_gate:
        inputs.append((f"{name}.g_proj.weight", c.heads * c.value))
    return GLAMixer(
        config=c,
        inputs=read.joined(inputs, hidden),
        gate=read.linear(f"{name}.gk_proj.1.weight", c.kv_heads * c.key, GATE_RANK, bias=f"{name}.gk_proj.1.bias"),
        norm=read_gated_norm(read, name, c.value, c.shell.norm_eps),
        output=read.linear(f"{name}.o_proj.weight", hidden, c.heads * c.value),
    )


def load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> FLAModel:
    """The layout of flash-linear-attention's GLAForCausalLM. State per layer: `recurrent` [heads, value, key] fp32."""
    c, read = read_config(checkpoint), WeightReader(checkpoint, device, dtype)
    state = {"recurrent": ((c.heads, c.value, c.key), torch.float32)}
    family = Family("GLA", c.shell, state, lambda name, _: _read_mixer(read, name, c))
    return FLAModel(checkpoint.architecture, family, read)
