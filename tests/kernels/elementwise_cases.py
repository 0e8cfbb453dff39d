"""Random inputs for the operators without a matrix state: the diagonal recurrence, RWKV-4's attention, the sLSTM cell.

All three are called alike: operands per token, then parameters, then the pool and the batch.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.kernels.diagonal import diagonal, diagonal_ref
from ostinato.kernels.packed import Packed
from ostinato.kernels.slstm import slstm, slstm_ref
from ostinato.kernels.wkv4 import wkv4, wkv4_ref
from tests.kernels.random_batches import SLOTS, poisoned, relative_error, same_bits, spaced, uniform, unwritten, written

NAMES = ("diagonal", "slstm", "wkv4")
Operator = Callable[..., Tensor]
PUBLIC: dict[str, Operator] = {"diagonal": diagonal, "slstm": slstm, "wkv4": wkv4}
REFERENCES: dict[str, Operator] = {"diagonal": diagonal_ref, "slstm": slstm_ref, "wkv4": wkv4_ref}


@dataclass(frozen=True)
class Inputs:
    """operands: [T, ...] each; parameters: what the operator takes after them; state: [SLOTS, ...]."""

    name: str
    operands: tuple[Tensor, ...]
    parameters: tuple[Tensor, ...]
    state: Tensor

    def run(self, batch: Packed, state: Tensor) -> Tensor:
        """The operator as models call it, on `state`."""
        return PUBLIC[self.name](*self.operands, *self.parameters, state, batch)

    def arguments(self, batch: Packed, state: Tensor) -> tuple[object, ...]:
        """Those of the registered operator, and so of every implementation."""
        return (*self.operands, *self.parameters, state, batch.src, batch.dst, batch.starts, batch.longest)

    def tokens(self, start: int, stop: int) -> "Inputs":
        return replace(self, operands=tuple(x[start:stop] for x in self.operands))

    def before(self, other: "Inputs") -> "Inputs":
        """The tokens of both, with the parameters of this one."""
        pairs = zip(self.operands, other.operands, strict=True)
        return replace(self, operands=tuple(torch.cat(pair) for pair in pairs))


def inputs(
    name: str,
    tokens: int,
    generator: torch.Generator,
    *,
    channels: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Inputs:
    """Decays from nearly 0 to nearly 1, keys whose exponentials overflow, tokens that lie apart, some slots empty.

    `channels`: of a head where there are heads; mostly no power of two unless they are given.
    """
    channels = channels or int(torch.randint(1, 70, (), generator=generator))
    operands, parameters, rows = {"diagonal": _diagonal, "slstm": _slstm, "wkv4": _wkv4}[name](
        tokens, channels, generator
    )
    state = uniform(generator, SLOTS, *rows)
    if name != "diagonal":
        state[:, {"slstm": 2, "wkv4": 1}[name]] += 2.0  # the normaliser of a state that has read something
        state[torch.rand(SLOTS, generator=generator) < 0.3] = 0.0
    return Inputs(name, tuple(spaced(x.to(dtype)) for x in operands), parameters, state)


Parts = tuple[tuple[Tensor, ...], tuple[Tensor, ...], tuple[int, ...]]


def _diagonal(tokens: int, channels: int, generator: torch.Generator) -> Parts:
    x, gate = uniform(generator, tokens, channels), uniform(generator, tokens, channels, low=-12.0, high=12.0)
    return (x, F.logsigmoid(gate)), (), (channels,)


def _slstm(tokens: int, width: int, generator: torch.Generator) -> Parts:
    heads = int(torch.randint(1, 4, (), generator=generator))
    x = uniform(generator, tokens, 4, heads, width, low=-6.0, high=6.0)
    recurrent = uniform(generator, heads, 4, width, width) * 2.0 * width**-0.5
    return (x,), (recurrent, uniform(generator, 4, heads, width)), (4, heads, width)


def _wkv4(tokens: int, channels: int, generator: torch.Generator) -> Parts:
    scale = (3.0, 100.0)[int(torch.randint(0, 2, (), generator=generator))]
    k, v = uniform(generator, tokens, channels, low=-scale, high=scale), uniform(generator, tokens, channels)
    decay, bonus = -uniform(generator, channels, low=-9.0, high=3.0).exp(), uniform(generator, channels)
    return (k, v), (decay, bonus), (3, channels)


def check(case: Inputs, batch: Packed, implementation: Operator) -> None:
    """An implementation against the reference: outputs, states, and that it reads and writes nothing else."""
    expected_state, found_state = case.state.clone(), poisoned(case.state, batch)
    before = found_state.clone()
    expected = REFERENCES[case.name](*case.arguments(batch, expected_state))
    found = implementation(*case.arguments(batch, found_state))
    assert relative_error(found, expected) <= 1e-5
    assert state_error(found_state[written(batch)], expected_state[written(batch)]) <= 1e-5
    assert same_bits(found_state[unwritten(batch)], before[unwritten(batch)])


def state_error(found: Tensor, expected: Tensor) -> float:
    """The relative error of the worst row of the states [B, rows, ...] or [B, C]: rows differ in scale."""
    if found.dim() == 2:
        return relative_error(found, expected)
    return max(relative_error(*rows) for rows in zip(found.unbind(1), expected.unbind(1), strict=True))
