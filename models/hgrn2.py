"""HGRN2 (Qin et al. 2024), in the flash-linear-attention layout."""

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
from ostinato.models.hgrn import ForgetGate, read_forget_gates
from ostinato.models.layers import RMSNorm, WeightReader

OUTPUT_NORM_EPS = 1e-5  # fixed in the published layer, whatever the config says
EXPAND_RATIO = 128


@dataclass(frozen=True, slots=True)
class HGRN2Config:
    """Sizes in elements. `head`: of keys and of values. `bounded`: as in HGRN."""

    shell: Shell
    heads: int
    head: int
    bounded: bool


def read_config(checkpoint: Checkpoint) -> HGRN2Config:
    """fla's HGRN2Config. Options that change the mathematics and are not implemented are refused by name.

    `num_heads` says something only where `expand_ratio`, the size of a head, is null.
    """
    config = ConfigReader(checkpoint.config, checkpoint.folder / "config.json")
    config.only("use_short_conv", False)
    shell = read_shell(config)
    if checkpoint.config.get("expand_ratio", EXPAND_RATIO) is None:
        heads = config.integer("num_heads")
        head = config.divide("num_heads", shell.hidden, heads)
    else:
        head = config.integer("expand_ratio", EXPAND_RATIO)
        heads = config.divide("expand_ratio", shell.hidden, head)
    return HGRN2Config(shell=shell, heads=heads, head=head, bounded=config.flag("use_lower_bound", True))


@dataclass(frozen=True, slots=True)
class HGRN2Mixer:
    """Section 3 of the paper. `inputs` joins the query, the forget gate and the input.

    Its state is `recurrent`: [slots, heads, head, head].
    """

    config: HGRN2Config
    inputs: Linear
    forget: ForgetGate
    norm: RMSNorm
    output: Linear

    def __call__(self, u: Tensor, reading: Reading, state: StateTensors, residual: Tensor) -> Tensor:
        """See `Mixer`."""
        heads = (self.config.heads, self.config.head)
        q, f, i = self.inputs(u).chunk(3, dim=-1)
        log_forget, complement = self.forget(f)
        o = recurrence(
            rows.silu(q).unflatten(-1, heads),
            complement.unflatten(-1, heads),
            i.unflatten(-1, heads),
            state["recurrent"],
            reading.batch,
            log_decay=log_forget.unflatten(-1, heads),
            scale=self.config.head**-0.5,
        )
        return self.output(self.norm(o.flatten(1), self.output.dtype), residual)


def _read_mixer(read: WeightReader, name: str, c: HGRN2Config, forget: ForgetGate) -> HGRN2Mixer:
    hidden = c.shell.hidden
    return HGRN2Mixer(
        config=c,
        inputs=read.joined([(f"{name}.{part}_proj.weight", hidden) for part in "qfi"], hidden),
        forget=forget,
        norm=RMSNorm(read.tensor(f"{name}.g_norm.weight", hidden), OUTPUT_NORM_EPS),
        output=read.linear(f"{name}.o_proj.weight", hidden, hidden),
    )


def load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> FLAModel:
    """flash-linear-attention's HGRN2ForCausalLM. State per layer: `recurrent` [heads, head, head] fp32."""
    c, read = read_config(checkpoint), WeightReader(checkpoint, device, dtype)
    gates = read_forget_gates(read, c.shell.layers, c.shell.hidden, bounded=c.bounded)
    state = {"recurrent": ((c.heads, c.head, c.head), torch.float32)}
    family = Family("HGRN2", c.shell, state, lambda name, layer: _read_mixer(read, name, c, gates[layer]))
    return FLAModel(checkpoint.architecture, family, read)
