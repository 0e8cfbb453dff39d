"""Random calls of the sliding-window attention, and what PyTorch's own attention says of them.

Every sequence has a whole history, of which the ring holds what its window keeps; all else in the ring is NaN. What is
expected comes from the histories alone, so it knows nothing of rings and chunks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.kernels.packed import Packed
from tests.kernels.random_batches import uniform

SLOTS = 8

Operator = Callable[..., Tensor]


@dataclass(frozen=True, slots=True)
class Shape:
    window: int
    heads: int
    groups: int
    width: int
    sinks: int = 0

    def row(self, position: int) -> int:
        """Of the ring."""
        return position if position < self.sinks else self.sinks + (position - self.sinks) % (self.window - self.sinks)


@dataclass(frozen=True, slots=True)
class Call:
    """One sequence: how much it has read, how much it reads now, from where and to where."""

    past: int
    length: int
    src: int
    dst: int


@dataclass(frozen=True, slots=True)
class Case:
    """The operator's operands, and the whole keys and values [past + length, G, D] of every sequence."""

    shape: Shape
    calls: tuple[Call, ...]
    q: Tensor
    far: Tensor | None
    k: Tensor
    v: Tensor
    keys: Tensor
    values: Tensor
    histories: tuple[tuple[Tensor, Tensor], ...]

    @property
    def scale(self) -> float:
        return self.shape.width**-0.5

    @property
    def past(self) -> Tensor:
        return torch.tensor([call.past for call in self.calls], dtype=torch.int32)

    @property
    def batch(self) -> Packed:
        src, dst, lengths = ([getattr(call, name) for call in self.calls] for name in ("src", "dst", "length"))
        return Packed.of(src, lengths, dst=dst)

    def run(self, operator: Operator) -> tuple[Tensor, Tensor, Tensor]:
        """What an operator with the schema's arguments returns, and the rings that it leaves behind."""
        keys, values, batch = self.keys.clone(), self.values.clone(), self.batch
        where = (batch.src, batch.dst, batch.starts, batch.longest)
        options = (self.scale, self.far, self.shape.sinks)
        return operator(self.q, self.k, self.v, keys, values, self.past, *where, *options), keys, values


def random_shape(generator: torch.Generator, sinks: int = 0) -> Shape:
    groups = _pick(generator, 1, 2, 3)
    heads = groups * _pick(generator, 1, 2, 5)
    return Shape(_pick(generator, 5, 8, 17, 33, 64) + sinks, heads, groups, _pick(generator, 4, 16, 20, 31, 64), sinks)


def random_calls(generator: torch.Generator, window: int, longest: int) -> list[Call]:
    """One in place, one new, two forks of one source, one padding, one empty, in random order and of random lengths."""
    slots = torch.randperm(SLOTS, generator=generator).tolist()

    def length() -> int:
        return _pick(generator, 1, 2, window - 1, window, window + 1, 2 * window + 3, longest)

    forked = _pick(generator, 0, 1, window, 3 * window + 2)
    calls = [
        Call(_pick(generator, 1, window - 1, window, 5 * window - 2), length(), slots[0], slots[0]),
        Call(0, length(), -1, slots[1]),
        Call(forked, length(), slots[2], slots[3]),
        Call(forked, _pick(generator, 0, 1, window + 2), slots[2], slots[4]),
        Call(forked, 1, slots[2], -1),
        Call(0, 2, -1, -1),
        Call(window + 1, 0, slots[5], slots[5]),
    ]
    return [calls[i] for i in torch.randperm(len(calls), generator=generator).tolist()]


def make_case(
    generator: torch.Generator, shape: Shape, calls: Sequence[Call], dtype: torch.dtype = torch.float32
) -> Case:
    """Random operands; sequences with the same source share their past. q, k, v are slices of one buffer."""
    rows = [shape.heads, shape.groups, shape.groups]
    tokens = sum(call.length for call in calls)
    far = 4 * uniform(generator, tokens, shape.heads, shape.width).to(dtype) if shape.sinks else None
    fused = uniform(generator, tokens, sum(rows), shape.width).to(dtype)
    q, k, v = (4 * fused).split(rows, dim=1)
    rings = [torch.full((SLOTS, shape.window, shape.groups, shape.width), torch.nan, dtype=dtype) for _ in range(2)]
    pasts: dict[int, tuple[Tensor, Tensor]] = {}
    histories, start = [], 0
    for call in calls:
        if call.src not in pasts or not call.past:
            before = [uniform(generator, call.past, shape.groups, shape.width).to(dtype) * 4 for _ in rings]
            pasts[call.src] = (before[0], before[1])
            for ring, x in zip(rings, before, strict=True):
                write_ring(shape, ring, call.src, x)
        new = slice(start, start := start + call.length)
        histories.append((torch.cat([pasts[call.src][0], k[new]]), torch.cat([pasts[call.src][1], v[new]])))
    return Case(shape, tuple(calls), q, far, k, v, rings[0], rings[1], tuple(histories))


def write_ring(shape: Shape, ring: Tensor, slot: int, history: Tensor) -> None:
    """A history from its first position on: each overwrites an older one."""
    for position in range(history.shape[0]):
        ring[slot, shape.row(position)] = history[position]


def expected_output(case: Case) -> Tensor:
    """PyTorch's attention over every whole history, with a band for a mask.

    Where there are sinks, heads are twice as wide: a query has its two forms side by side, a sink its key in the second
    half and any other position in the first.
    """
    sinks, recent = case.shape.sinks, case.shape.window - case.shape.sinks
    far = case.q if case.far is None else case.far
    start, rows = 0, [torch.empty(0, case.shape.heads, case.shape.width)]
    for call, history in zip(case.calls, case.histories, strict=True):
        q = torch.cat([x[start : start + call.length].float() for x in (case.q, far)], -1).transpose(0, 1)
        k, v = (x.float().transpose(0, 1) for x in history)
        is_sink = (torch.arange(k.shape[1]) < sinks)[:, None]
        k = torch.cat([torch.where(is_sink, 0.0, k), torch.where(is_sink, k, 0.0)], -1)
        causal = torch.ones(call.past + call.length, call.past + call.length, dtype=torch.bool).tril()
        band = (causal & (~causal.tril(-recent) | is_sink.T))[call.past :]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=band, scale=case.scale, enable_gqa=True)
        rows.append(y.transpose(0, 1))
        start += call.length
    return torch.cat(rows)


def expected_rings(case: Case) -> tuple[Tensor, Tensor]:
    rings = case.keys.clone(), case.values.clone()
    for call, history in zip(case.calls, case.histories, strict=True):
        if call.dst >= 0:
            for ring, x in zip(rings, history, strict=True):
                write_ring(case.shape, ring, call.dst, x)
    return rings


def same_bits(found: Tensor, expected: Tensor) -> bool:
    """Equality that holds between NaNs too."""
    return torch.equal(found.view(torch.uint8), expected.view(torch.uint8))


def _pick(generator: torch.Generator, *options: int) -> int:
    return options[int(torch.randint(len(options), (), generator=generator))]
