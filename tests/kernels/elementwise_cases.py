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
from tests.kernels.random_batches import relative_error, uniform

SLOTS = 9
Operator = Callable[..., Tensor]
OPERATORS: dict[str, tuple[Operator, Operator]] = {
    "diagonal": (diagonal, diagonal_ref),
    "wkv4": (wkv4, wkv4_ref),
    "slstm": (slstm, slstm_ref),
}


@dataclass(frozen=True)
class Inputs:
    """operands: [T, ...] each; parameters: what the operator takes after them; state: [SLOTS, ...]."""

    name: str
    operands: tuple[Tensor, ...]
    parameters: tuple[Tensor, ...]
    state: Tensor

    def run(self, batch: Packed, state: Tensor) -> Tensor:
        """The operator as models call it, on `state`."""
        return OPERATORS[self.name][0](*self.operands, *self.parameters, state, batch)

    def run_by(self, implementation: Operator, batch: Packed, state: Tensor) -> Tensor:
        """One implementation of it, on `state`."""
        return implementation(*self.arguments(batch, state))

    def reference(self, batch: Packed, state: Tensor) -> Tensor:
        return self.run_by(OPERATORS[self.name][1], batch, state)

    def arguments(self, batch: Packed, state: Tensor) -> tuple[object, ...]:
        """Those of the registered operator."""
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
    if name == "diagonal":
        log_decay = F.logsigmoid(spaced(generator, tokens, channels, scale=12.0)).to(dtype)
        return Inputs(
            name, (spaced(generator, tokens, channels).to(dtype), log_decay), (), uniform(generator, SLOTS, channels)
        )
    if name == "wkv4":
        scale = (3.0, 100.0)[int(torch.randint(0, 2, (), generator=generator))]
        operands = tuple(spaced(generator, tokens, channels, scale=high).to(dtype) for high in (scale, 1.0))
        decay, bonus = -uniform(generator, channels, low=-9.0, high=3.0).exp(), uniform(generator, channels)
        state = uniform(generator, SLOTS, 3, channels)
        state[:, 1] += 2.0
        return Inputs(name, operands, (decay, bonus), _with_empty_slots(state, generator))
    heads, width = int(torch.randint(1, 4, (), generator=generator)), channels
    recurrent = uniform(generator, heads, 4, width, width) * 2.0 * width**-0.5
    state = uniform(generator, SLOTS, 4, heads, width)
    state[:, 2] += 2.0
    x = spaced(generator, tokens, 4, heads, width, scale=6.0).to(dtype)
    return Inputs(name, (x,), (recurrent, uniform(generator, 4, heads, width)), _with_empty_slots(state, generator))


def spaced(generator: torch.Generator, tokens: int, *shape: int, scale: float = 1.0) -> Tensor:
    """Tokens of `shape`, each contiguous, that are part of longer rows: a projection's output that is split."""
    size = torch.Size(shape).numel()
    return (uniform(generator, tokens, size + 3, low=-scale, high=scale))[:, 2 : size + 2].view(tokens, *shape)


def _with_empty_slots(state: Tensor, generator: torch.Generator) -> Tensor:
    state[torch.rand(SLOTS, generator=generator) < 0.3] = 0.0
    return state


def random_packed(generator: torch.Generator, longest: int) -> Packed:
    """1 to 5 sequences of 0 to `longest` tokens, at least one; sources unordered and repeated, -1s on both sides."""
    count = int(torch.randint(1, 6, (), generator=generator))
    lengths = [
        int(torch.randint(0, min(longest, (1, 4, longest)[i % 3]) + 1, (), generator=generator)) for i in range(count)
    ]
    lengths[0] = max(1, lengths[0])
    order = torch.randperm(SLOTS, generator=generator).tolist()
    own, shared = order[:count], order[-1]  # `shared` is nobody's destination
    kinds = torch.randint(0, 5, (count,), generator=generator).tolist()
    src = [(-1, shared, shared, slot, slot)[kind] for kind, slot in zip(kinds, own, strict=True)]
    dst = [-1 if kind == 1 else slot for kind, slot in zip(kinds, own, strict=True)]
    return Packed.of(src, lengths, dst=dst)


def state_error(found: Tensor, expected: Tensor) -> float:
    """The relative error of the worst row of the states [B, rows, ...] or [B, C]: rows differ in scale."""
    if found.dim() == 2:
        return relative_error(found, expected)
    return max(relative_error(*rows) for rows in zip(found.unbind(1), expected.unbind(1), strict=True))


def written(batch: Packed) -> list[int]:
    return [slot for slot in batch.dst.tolist() if slot >= 0]


def unused(batch: Packed) -> list[int]:
    used = {*batch.src.tolist(), *batch.dst.tolist()}
    return [slot for slot in range(SLOTS) if slot not in used]
