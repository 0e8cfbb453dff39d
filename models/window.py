"""A layer of attention over a sliding window, for every hybrid: its ring of keys and values is part of the state.

So is the number of tokens that a sequence has read, from which its positions follow: a state is complete by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ostinato.kernels import rows
from ostinato.kernels.attention import window_attention
from ostinato.kernels.linear import Linear
from ostinato.kernels.packed import Packed, read_slots
from ostinato.models.base import StateTensor, StateTensors
from ostinato.models.config import ConfigReader
from ostinato.models.errors import CheckpointError
from ostinato.models.layers import RMSNorm

_DIGIT_BITS, _DIGITS = 9, 4  # positions up to 2^36: at a thousand tokens a second, two years of reading
_WIDEST = 4096  # elements; the tables take 32 KiB for each


class Rotary:
    """Rotary position embedding (Su et al. 2021, RoFormer, section 3.2.2) of the first `width` elements of a head.

    Element i turns with element i + width / 2, as everybody but the paper pairs them. Angles are exact at any distance:
    position p is written as digits, whose rotations come from tables and are multiplied in fp64. That takes additions
    and multiplications only, which give the same bits at any place in a batch; a cosine of PyTorch's does not.

    Raises CheckpointError: a head so wide that the tables alone would fill the memory.
    """

    def __init__(self, width: int, base: float, device: torch.device) -> None:
        if width > _WIDEST:
            raise CheckpointError(f"a head that turns {width} elements is wider than any model's (at most {_WIDEST})")
        self.width = width
        exponents = torch.arange(0, width, 2, dtype=torch.float64) / width
        frequencies = (1 / base**exponents).float().double()  # fp32 is what models are trained with
        digits = torch.arange(2**_DIGIT_BITS, dtype=torch.float64)
        self._shifts = _DIGIT_BITS * torch.arange(_DIGITS)
        angles = (digits * (2**self._shifts).unsqueeze(1)).unsqueeze(-1) * frequencies
        cos, sin = angles.cos(), angles.sin()
        turns = torch.stack([torch.stack([cos, sin], -2), torch.stack([-sin, cos], -2)], -3)
        self._turns = turns.to(device)  # [digits, values, 2, 2, width / 2]
        self._shifts, self._levels = self._shifts.to(device), torch.arange(_DIGITS, device=device)

    def at(self, positions: Tensor) -> Tensor:
        """positions: [T] int64. Returns cosines and sines: [T, 2, width / 2] fp32."""
        digits = (positions.unsqueeze(1) >> self._shifts) & (2**_DIGIT_BITS - 1)
        first, *others = self._turns[self._levels, digits].unbind(1)
        turn = first[:, 0]
        for other in others:  # cos(a + b) = cos a cos b - sin a sin b, and so on
            turn = turn[:, :1] * other[:, 0] + turn[:, 1:] * other[:, 1]
        return turn.float()


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """x: [T, heads, D] fp32; turn: as `Rotary.at` returns it, for the first elements of D. Returns x's shape, fp32."""
    half = turn.shape[-1]
    cos, sin = turn[:, :1], turn[:, 1:]
    first, second, rest = x.split([half, half, x.shape[-1] - 2 * half], dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


@dataclass(frozen=True, slots=True)
class Places:
    """Where the tokens of one forward pass are in their sequences.

    past: [B] int64, how many tokens were read before; positions: [T] int64, from 0 on; turn: as `Rotary.at` gives it;
    far_turn: likewise, for queries that meet sinks, which stay within reach.
    """

    past: Tensor
    positions: Tensor
    turn: Tensor | None
    far_turn: Tensor | None


def advance(pool: StateTensors, batch: Packed, tokens: int, rotary: Rotary | None, reach: int | None = None) -> Places:
    """Counts `tokens`, those of the batch, in the state's `position`; to be called once in a forward pass.

    reach: of the layers' WindowSizes, where they have sinks.
    Nothing here waits for the device, so that a step can be captured as a CUDA graph.
    """
    position = pool["position"][0]
    past = read_slots(position, batch.src)
    written = batch.dst.clamp(min=0).long()
    change = past + batch.starts.diff() - position[written]
    position.index_add_(0, written, torch.where(batch.dst >= 0, change, 0))  # padding adds nothing to slot 0
    order = torch.arange(tokens, dtype=torch.int32, device=past.device)
    sequence = torch.searchsorted(batch.starts[1:], order, right=True)
    positions = order + (past - batch.starts[:-1])[sequence]
    turn = None if rotary is None else rotary.at(positions)
    far_turn = None if rotary is None or reach is None else rotary.at(positions.clamp(max=reach))
    return Places(past, positions, turn, far_turn)


@dataclass(frozen=True, slots=True)
class WindowSizes:
    """Of one layer. window: tokens that a query sees, its own included; kv_heads: heads of keys and of values.

    sinks: how many of the window's tokens are the first ones of the sequence (`kernels/attention.py`).
    """

    heads: int
    kv_heads: int
    head: int
    window: int
    sinks: int = 0

    @property
    def reach(self) -> int | None:
        """The largest distance at which a sink is seen; None without sinks."""
        return self.window - 1 if self.sinks else None

    @property
    def joined(self) -> tuple[int, int, int]:
        """Widths of queries, keys and values."""
        return self.heads * self.head, self.kv_heads * self.head, self.kv_heads * self.head

    def state(self, layers: int, dtype: torch.dtype) -> tuple[StateTensor, ...]:
        """What `layers` such layers add to a StateSpec. dtype: of keys and values, that of the computation."""
        position = StateTensor("position", 1, (), torch.int64)
        if not layers:
            return (position,)
        ring = (self.window, self.kv_heads, self.head)
        return (*(StateTensor(f"window_{each}", layers, ring, dtype) for each in ("keys", "values")), position)


@dataclass(frozen=True, slots=True)
class WindowAttention:
    """Projections, norms and rotation about `kernels.attention.window_attention`.

    qkv: one projection with the outputs of `sizes.joined` side by side. norm: of queries and keys, head by head, before
    they are turned: [heads + kv_heads, head]. key_scale, output_scale: multiply keys and what is projected at the end.
    gate: [heads * head, hidden], whose sigmoid multiplies what is projected (Qiu et al. 2025, Gated Attention).
    """

    sizes: WindowSizes
    qkv: Linear
    output: Linear
    norm: RMSNorm | None = None
    key_scale: float = 1.0
    output_scale: float = 1.0
    gate: Linear | None = None

    def __call__(
        self, u: Tensor, batch: Packed, places: Places, keys: Tensor, values: Tensor, residual: Tensor
    ) -> Tensor:
        """u: [T, hidden]; keys, values: [slots, window, kv_heads, head]; residual: [T, hidden] fp32.

        Returns residual and output together: [T, hidden] fp32.
        """
        s = self.sizes
        queries, shared, _ = s.joined
        qk, v = self.qkv(u).split([queries + shared, shared], dim=-1)
        qk = qk.unflatten(-1, (s.heads + s.kv_heads, s.head))
        if self.norm is not None:
            qk = self.norm(qk, torch.float32)
        far = None if places.far_turn is None else rotate(qk[:, : s.heads], places.far_turn)
        if places.turn is not None:
            qk = rotate(qk, places.turn)
        q, k = qk.split([s.heads, s.kv_heads], dim=1)
        v = v.unflatten(-1, (s.kv_heads, s.head))
        k, v, scale = k.to(keys.dtype), v.to(values.dtype), self.key_scale * s.head**-0.5
        y = window_attention(q, k, v, keys, values, places.past, batch, scale=scale, far=far, sinks=s.sinks).flatten(1)
        if self.gate is not None:
            y = y * rows.sigmoid(self.gate(u))
        return self.output(y if self.output_scale == 1 else y * self.output_scale, residual)


def head_norm(queries: Tensor, keys: Tensor, sizes: WindowSizes, eps: float) -> RMSNorm:
    """The `norm` of WindowAttention from one weight [head] for queries and one for keys, which all heads share."""
    weights = [queries.expand(sizes.heads, -1), keys.expand(sizes.kv_heads, -1)]
    return RMSNorm(torch.cat(weights), eps)


def read_rotary(config: ConfigReader, head: int, *, base: float, part: float = 1.0) -> tuple[int, float]:
    """Width and base of a Rotary for heads of `head` elements, from transformers' keys of either generation.

    base, part: what they are where `rope_theta` and `partial_rotary_factor` are absent. Raises as ConfigReader.
    """
    config.only("rope_scaling", None)
    newer = config.section("rope_parameters")
    newer.only("rope_type", "default")
    of_base, of_part = (newer if newer.has(key) else config for key in ("rope_theta", "partial_rotary_factor"))
    width = of_part.fraction_of(head, "partial_rotary_factor", part)
    of_part.divide("partial_rotary_factor", width, 2)
    return width, of_base.positive("rope_theta", base, most=1e15)


def layer_indices(chosen: Sequence[int]) -> dict[int, int]:
    """Layer -> its place among the chosen ones: the index of its memory in a StateTensor that only these have."""
    return {layer: place for place, layer in enumerate(sorted(chosen))}
