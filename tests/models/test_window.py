"""The layer of sliding-window attention, by itself, against PyTorch's attention over rows turned as complex numbers."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.engine.state_pool import StatePool
from ostinato.kernels.dispatch import supported_dtypes
from ostinato.kernels.linear import Linear
from ostinato.kernels.packed import Packed
from ostinato.models.base import StateSpec
from ostinato.models.window import Rotary, WindowAttention, WindowSizes, advance, head_norm

CPU = torch.device("cpu")
HIDDEN, SLOTS, BASE, EPS = 24, 5, 10000.0, 1e-5
CASES = {  # sizes, rotary width (0: none), biases and norms
    "plain": (WindowSizes(3, 3, 8, 7), 8, False),
    "grouped": (WindowSizes(4, 2, 16, 5), 16, True),
    "one-key-half-turned": (WindowSizes(3, 1, 20, 4), 10, False),
    "no-positions": (WindowSizes(2, 1, 6, 1), 0, True),
}
each_case = pytest.mark.parametrize("case", CASES)


@dataclass
class Layer:
    """A layer with random weights, and all that it remembers."""

    sizes: WindowSizes
    rotary: Rotary | None
    weight: Tensor
    bias: Tensor | None
    output: Tensor
    norms: tuple[Tensor, Tensor] | None
    dtype: torch.dtype

    @classmethod
    def of(cls, case: str, seed: int, dtype: torch.dtype = torch.float32) -> Layer:
        sizes, width, extras = CASES[case]
        torch.manual_seed(seed)
        return cls(
            sizes,
            Rotary(width, BASE, CPU) if width else None,
            torch.randn(sum(sizes.joined), HIDDEN) / 3,
            torch.randn(sum(sizes.joined)) if extras else None,
            torch.randn(HIDDEN, sizes.joined[0]) / 3,
            (1 + torch.randn(sizes.head) / 3, 1 + torch.randn(sizes.head) / 3) if extras else None,
            dtype,
        )

    def __post_init__(self) -> None:
        self.pool = StatePool(StateSpec(self.sizes.state(1, self.dtype)), SLOTS)
        self.attention = WindowAttention(
            self.sizes,
            Linear(self.weight.to(self.dtype), self.bias),
            Linear(self.output.to(self.dtype)),
            None if self.norms is None else head_norm(*self.norms, self.sizes, EPS),
        )

    def read(self, chunks: dict[int, Tensor]) -> dict[int, Tensor]:
        """Slot -> inputs [length, HIDDEN]. Returns slot -> outputs."""
        lengths = [len(x) for x in chunks.values()]
        batch, u = Packed.of(list(chunks), lengths), torch.cat(list(chunks.values()))
        places = advance(self.pool.tensors, batch, len(u), self.rotary)
        keys, values = (self.pool.tensors[f"window_{name}"][0] for name in ("keys", "values"))
        y = self.attention(u.to(self.dtype), batch, places, keys, values, u)
        return dict(zip(chunks, y.split(lengths), strict=True))


def expected(layer: Layer, u: Tensor) -> Tensor:
    """By other means: complex numbers, and PyTorch's attention with a band for its mask."""
    s = layer.sizes
    q, k, v = (
        x.unflatten(-1, (-1, s.head)).transpose(0, 1)
        for x in F.linear(u, layer.weight, layer.bias).split(s.joined, dim=-1)
    )
    if layer.norms is not None:
        q, k = (F.rms_norm(x, (s.head,), weight, EPS) for x, weight in zip((q, k), layer.norms, strict=True))
    if layer.rotary is not None:
        q, k = (turned(x, layer.rotary.width) for x in (q, k))
    at = torch.arange(len(u))
    back = at[:, None] - at
    seen = (back >= 0) & (back < s.window)
    y = F.scaled_dot_product_attention(q, k, v, seen, enable_gqa=True)
    return u + F.linear(y.transpose(0, 1).flatten(1), layer.output)


def turned(x: Tensor, width: int) -> Tensor:
    frequencies = BASE ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * frequencies
    first, second, rest = x.split([width // 2, width // 2, x.shape[-1] - width], dim=-1)
    pairs = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles).to(torch.complex64)
    return torch.cat([pairs.real, pairs.imag, rest], dim=-1)


@pytest.mark.parametrize("seed", range(4))
@each_case
def test_layer_is_what_torch_computes(case: str, seed: int) -> None:
    layer, u = Layer.of(case, seed), torch.randn(30, HIDDEN)
    torch.testing.assert_close(layer.read({2: u})[2], expected(layer, u), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", supported_dtypes(CPU), ids=str)
@pytest.mark.parametrize("seed", range(8))
@each_case
def test_the_same_bits_in_any_batch_and_split(case: str, seed: int, dtype: torch.dtype) -> None:
    draw, alone, shared = random.Random(seed), Layer.of(case, seed, dtype), Layer.of(case, seed, dtype)
    texts = {slot: torch.randn(draw.randint(1, 40), HIDDEN) for slot in draw.sample(range(SLOTS), 4)}
    whole = {slot: alone.read({slot: text})[slot] for slot, text in texts.items()}
    left, found = dict(texts), {slot: [] for slot in texts}
    while left:
        slots = draw.sample(sorted(left), draw.randint(1, len(left)))
        chunks = {slot: left[slot][: draw.choice((1, 1, 2, 5, 17))] for slot in slots}
        outputs = shared.read({**chunks, -1: torch.randn(3, HIDDEN)})
        for slot, chunk in chunks.items():
            found[slot].append(outputs[slot])
            left[slot] = left[slot][len(chunk) :]
        left = {slot: text for slot, text in left.items() if len(text)}
    for slot, expected_bits in whole.items():
        assert torch.equal(torch.cat(found[slot]), expected_bits), f"seed {seed}, slot {slot}"
        assert shared.pool.tensors["position"][0, slot] == len(texts[slot])
    for name, tensor in alone.pool.tensors.items():
        assert torch.equal(shared.pool.tensors[name], tensor), name


def test_a_fork_counts_on_from_its_source_and_padding_counts_nowhere() -> None:
    layer = Layer.of("plain", 0)
    layer.read({1: torch.randn(9, HIDDEN)})
    layer.pool.tensors["position"][0, 3] = 77
    batch = Packed.of([1, 1, -1, -1], [2, 3, 4, 5], dst=[1, 3, -1, 2])
    places = advance(layer.pool.tensors, batch, 14, None)
    assert places.past.tolist() == [9, 9, 0, 0]
    assert layer.pool.tensors["position"][0].tolist() == [0, 11, 5, 12, 0]


def test_angles_are_exact_at_any_distance() -> None:
    """The product of a position of 29 bits and a frequency of 24 is an fp64 number."""
    positions = torch.tensor([0, 1, 511, 512, 513, 4095, 262_143, 262_144, 10**6 + 7, 2**27 + 12345, 2**29 - 1])
    frequencies = (1 / 500_000.0 ** (torch.arange(0, 64, 2, dtype=torch.float64) / 64)).float().double()
    angles = positions[:, None] * frequencies
    found = Rotary(64, 500_000.0, CPU).at(positions)
    torch.testing.assert_close(found, torch.stack([angles.cos(), angles.sin()], 1).float(), rtol=0, atol=6e-8)


def test_the_last_digit_of_a_position_counts() -> None:
    rotary = Rotary(2, 10000.0, CPU)
    far = rotary.at(torch.tensor([2**36 - 1, 2**36 - 2**27 - 1])).double()
    assert not torch.allclose(far[0], far[1], atol=1e-3)
