"""HGRN (Qin et al. 2023), in the flash-linear-attention layout."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ostinato.kernels import rows
from ostinato.kernels.diagonal import diagonal
from ostinato.kernels.linear import Linear
from ostinato.models.base import StateTensors
from ostinato.models.checkpoint import Checkpoint
from ostinato.models.config import ConfigReader
from ostinato.models.fla import Family, FLAModel, Shell, read_shell
from ostinato.models.fla_mixers import Reading
from ostinato.models.layers import RMSNorm, WeightReader


@dataclass(frozen=True, slots=True)
class HGRNConfig:
    """Sizes in elements. `bounded`: whether forget gates have a lower bound, which rises from layer to layer."""

    shell: Shell
    width: int
    bounded: bool


def read_config(checkpoint: Checkpoint) -> HGRNConfig:
    """fla's HGRNConfig. Options that change the mathematics and are not implemented are refused by name."""
    config = ConfigReader(checkpoint.config, checkpoint.folder / "config.json")
    config.only("use_short_conv", False)
    shell = read_shell(config)
    width = config.fraction_of(shell.hidden, "expand_ratio", 1)
    return HGRNConfig(shell=shell, width=width, bounded=config.flag("use_lower_bound", True))


@dataclass(frozen=True, slots=True)
class Bound:
    """What the forget gates of a layer do not go below: its logarithm, and how far it is from one. [width] fp32."""

    log: Tensor
    room: Tensor


@dataclass(frozen=True, slots=True)
class ForgetGate:
    """f = bound + (1 - bound) sigmoid(x): equations 2 and 3 of the paper. No bound means zero."""

    bound: Bound | None

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: [T, width] fp32. Returns log f and 1 - f, each [T, width] fp32, neither as a difference from one."""
        log_forget, complement = rows.log_sigmoid(x), rows.sigmoid(-x)
        if self.bound is None:
            return log_forget, complement
        # f = (1 + bound e^-x) sigmoid(x)
        return log_forget + rows.softplus(self.bound.log - x), complement * self.bound.room


def read_forget_gates(read: WeightReader, layers: int, width: int, *, bounded: bool) -> list[ForgetGate]:
    """For each layer one, with the bounds of equation 3: cumulative over the layers, from zero in the first."""
    if not bounded:
        return [ForgetGate(None)] * layers
    shares = read.tensor("model.lower_bounds", layers, width).softmax(0)
    # Where a bound underflows, its logarithm must stay finite.
    bounds = shares[1:].cumsum(0).clamp(min=1e-37)
    return [ForgetGate(None), *(ForgetGate(Bound(bound.log(), 1 - bound)) for bound in bounds)]


@dataclass(frozen=True, slots=True)
class HGRNMixer:
    """Section 3 of the paper. `inputs` joins the input, the forget gate and the output gate.

    Its state is `recurrent`: [slots, width].
    """

    inputs: Linear
    forget: ForgetGate
    norm: RMSNorm
    output: Linear

    def __call__(self, u: Tensor, reading: Reading, state: StateTensors, residual: Tensor) -> Tensor:
        """See `Mixer`."""
        i, f, gate = self.inputs(u).chunk(3, dim=-1)
        log_forget, complement = self.forget(f)
        h = diagonal(rows.silu(i) * complement, log_forget, state["recurrent"], reading.batch)
        return self.output(self.norm(h, self.output.dtype, gate=gate), residual)


def _read_mixer(read: WeightReader, name: str, c: HGRNConfig, forget: ForgetGate) -> HGRNMixer:
    return HGRNMixer(
        inputs=read.joined([(f"{name}.{part}_proj.weight", c.width) for part in "ifg"], c.shell.hidden),
        forget=forget,
        norm=RMSNorm(read.tensor(f"{name}.g_norm.weight", c.width), c.shell.norm_eps),
        output=read.linear(f"{name}.o_proj.weight", c.shell.hidden, c.width),
    )


def load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> FLAModel:
    """The layout of flash-linear-attention's HGRNForCausalLM. State per layer: `recurrent` [width] fp32."""
    c, read = read_config(checkpoint), WeightReader(checkpoint, device, dtype)
    gates = read_forget_gates(read, c.shell.layers, c.width, bounded=c.bounded)
    state = {"recurrent": ((c.width,), torch.float32)}
    family = Family("HGRN", c.shell, state, lambda name, layer: _read_mixer(read, name, c, gates[layer]))
    return FLAModel(checkpoint.architecture, family, read)
