"""BASED (Arora et al. 2024): linear attention with a Taylor feature map, sliding windows, and short convolutions.

Its configuration has neither an architecture nor a fixed form: `based_config` reads the published ones.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ostinato.kernels.conv import causal_conv
from ostinato.kernels.linear import Linear
from ostinato.kernels.packed import Packed
from ostinato.kernels.recurrence import recurrence
from ostinato.models.base import StateSpec, StateTensor, StateTensors
from ostinato.models.based_config import BasedConfig, Kind, LinearSizes, read_config
from ostinato.models.checkpoint import Checkpoint
from ostinato.models.layers import Embedding, GatedMLP, RMSNorm, WeightReader
from ostinato.models.window import Places, Rotary, WindowAttention, advance

DENOMINATOR_EPS = 1e-12


def taylor_features(x: Tensor) -> Tensor:
    """phi with phi(q) phi(k) = 1 + s + s^2 / 2, where s = q k / sqrt(D): [..., D] fp32 -> [..., 1 + D + D^2].

    Source: Arora et al. 2024, section 4.1.
    """
    width = x.shape[-1]
    squares = (x.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2)
    return torch.cat([torch.ones_like(x[..., :1]), x * width**-0.25, squares * (2 * width) ** -0.5], dim=-1)


@dataclass(frozen=True, slots=True)
class TaylorAttention:
    """Section 4.1 of the paper. `inputs` joins q, k and v.

    The denominator is the same sum as the numerator with ones for values, so it is one more column of them.
    """

    sizes: LinearSizes
    inputs: Linear
    output: Linear

    def __call__(
        self, u: Tensor, batch: Packed, state: Tensor, residual: Tensor, *, keyless: Tensor | None = None
    ) -> Tensor:
        """u: [T, hidden]; state: [slots, heads, value + 1, features]; residual: [T, hidden] fp32.

        keyless: [T, 1] bool, tokens whose key is zero. Returns residual and output together: [T, hidden] fp32.
        """
        q, k, v = self.inputs(u).split(self.sizes.joined, dim=-1)
        sums = recurrence(self.features(q), self.features(k, keyless), self.with_ones(v), state, batch)
        return self.output((sums[..., :-1] / (sums[..., -1:] + DENOMINATOR_EPS)).flatten(1), residual)

    def features(self, x: Tensor, zero: Tensor | None = None) -> Tensor:
        """phi of queries or keys [T, heads * width], those of `zero` [T, 1] zero before it: [T, heads, features]."""
        x = x if zero is None else x.masked_fill(zero, 0.0)
        return taylor_features(x.unflatten(-1, (self.sizes.heads, self.sizes.width)))

    def with_ones(self, v: Tensor) -> Tensor:
        """Values [T, heads * value] and the denominator's: [T, heads, value + 1]."""
        v = v.unflatten(-1, (self.sizes.heads, self.sizes.value))
        return torch.cat([v, torch.ones_like(v[..., :1])], dim=-1)


@dataclass(frozen=True, slots=True)
class GatedConv:
    """A short convolution, times a projection of the same input. `inputs` joins both."""

    inputs: Linear
    weight: Tensor  # [width, inner]
    bias: Tensor | None
    output: Linear

    def __call__(self, u: Tensor, batch: Packed, tail: Tensor, residual: Tensor) -> Tensor:
        """u: [T, hidden]; tail: [slots, width - 1, inner]; residual: [T, hidden] fp32.

        Returns residual and output together: [T, hidden] fp32.
        """
        x, gate = self.inputs(u).chunk(2, dim=-1)
        return self.output(causal_conv(x, self.weight, self.bias, tail, batch) * gate, residual)


class OneTensorMixer(Protocol):
    """A mixer whose state is one tensor, called as TaylorAttention and GatedConv are."""

    def __call__(self, u: Tensor, batch: Packed, state: Tensor, residual: Tensor, /) -> Tensor: ...


Mixer = OneTensorMixer | WindowAttention
LinearReader = Callable[[WeightReader, str, LinearSizes, int], OneTensorMixer]
"""Reads a layer of linear attention: weights, name, sizes, hidden size."""


def read_taylor(read: WeightReader, name: str, sizes: LinearSizes, hidden: int) -> TaylorAttention:
    """The layer of that name. Raises CheckpointError."""
    parts = zip(("proj_q", "proj_k", "proj_v"), sizes.joined, strict=True)
    inputs = read.joined([(f"{name}.{part}.weight", size) for part, size in parts], hidden)
    return TaylorAttention(sizes, inputs, read.linear(f"{name}.out_proj.weight", hidden, sizes.heads * sizes.value))


def _read_mixer(read: WeightReader, name: str, kind: Kind, c: BasedConfig, read_linear: LinearReader) -> Mixer:
    if kind == "linear" and c.linear is not None:
        return read_linear(read, name, c.linear, c.hidden)
    if kind == "window" and c.window is not None:
        qkv = read.linear(f"{name}.Wqkv.weight", sum(c.window.joined), c.hidden)
        return WindowAttention(c.window, qkv, read.linear(f"{name}.out_proj.weight", c.hidden, c.window.joined[0]))
    assert c.conv is not None
    conv = read.tensor(f"{name}.conv.conv.weight", c.conv.inner, 1, c.conv.width)
    in_bias, out_bias = (f"{name}.{part}.bias" if c.conv.bias else None for part in ("in_proj", "out_proj"))
    return GatedConv(
        inputs=read.linear(f"{name}.in_proj.weight", 2 * c.conv.inner, c.hidden, bias=in_bias),
        weight=conv.squeeze(1).T.contiguous(),
        bias=read.tensor(f"{name}.conv.conv.bias", c.conv.inner) if c.conv.conv_bias else None,
        output=read.linear(f"{name}.out_proj.weight", c.hidden, c.conv.inner, bias=out_bias),
    )


@dataclass(frozen=True, slots=True)
class BasedBlock:
    """One layer. `place`: which of the layers of its kind it is, and so which part of the state is its own."""

    kind: Kind
    place: int
    mixer_norm: RMSNorm
    mixer: Mixer
    mlp_norm: RMSNorm
    mlp: GatedMLP

    def __call__(
        self, x: Tensor, batch: Packed, pool: StateTensors, places: Places | None, dtype: torch.dtype
    ) -> Tensor:
        """x: [T, hidden] fp32; places: of the tokens, where there are windows; dtype: of the norms' outputs.

        Returns [T, hidden] fp32.
        """
        u = self.mixer_norm(x, dtype)
        if isinstance(self.mixer, WindowAttention):
            assert places is not None
            keys, values = pool["window_keys"][self.place], pool["window_values"][self.place]
            x = self.mixer(u, batch, places, keys, values, x)
        else:
            x = self.mixer(u, batch, pool[self.kind][self.place], x)
        return self.mlp(self.mlp_norm(x, dtype), x)


def _read_block(read: WeightReader, layer: int, c: BasedConfig, read_linear: LinearReader) -> BasedBlock:
    name, kind = f"transformer.layers.{layer}", c.kinds[layer]
    gate_up = read.linear(f"{name}.mlp.fc1.weight", 2 * c.mlp, c.hidden)
    return BasedBlock(
        kind=kind,
        place=c.kinds[:layer].count(kind),
        mixer_norm=RMSNorm(read.tensor(f"{name}.norm1.weight", c.hidden), c.norm_eps),
        mixer=_read_mixer(read, f"{name}.mixer", kind, c, read_linear),
        mlp_norm=RMSNorm(read.tensor(f"{name}.norm2.weight", c.hidden), c.norm_eps),
        mlp=GatedMLP(gate_up, read.linear(f"{name}.mlp.fc2.weight", c.hidden, c.mlp)),
    )


class PublishedNames:
    """A checkpoint as it was trained, without the prefix, and with the gate of the MLP where others have it, first."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def has(self, name: str) -> bool:
        """Whether the tensor is on disk, taken or not."""
        return self._checkpoint.has(self._on_disk(name))

    def shape(self, name: str, dims: int | None = None) -> tuple[int, ...]:
        """See `Checkpoint.shape`."""
        return self._checkpoint.shape(self._on_disk(name), dims)

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """See `Checkpoint.take`."""
        tensor = self._checkpoint.take(self._on_disk(name), shape)
        return torch.cat(tensor.chunk(2)[::-1]) if name.endswith(".fc1.weight") else tensor

    def _on_disk(self, name: str) -> str:
        older = f"model.{name}".replace(".mixer.conv.", ".mixer.conv1.")
        return older if self._checkpoint.has(older) else f"model.{name}"


class Based:
    """See `ostinato.models.base.Model`.

    State per layer, according to its kind: `linear` [heads, value + 1, features] fp32, whose last row is the
    denominator's; the `conv` tail [width - 1, inner]; or a ring of keys and values (see `WindowSizes.state`).
    """

    family = "BASED"

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: BasedConfig,
        device: torch.device,
        dtype: torch.dtype,
        read_linear: LinearReader = read_taylor,
    ) -> None:
        checkpoint.drop(*(name for name in checkpoint.names if "metrics" in name))  # counters of the training run
        c, read = config, WeightReader(PublishedNames(checkpoint), device, dtype)
        self.architecture = checkpoint.architecture
        self.vocab_size, self.dtype = c.vocab_size, dtype
        self.state_spec = StateSpec(tuple(_state_tensors(c, dtype)), c.encoder_length)
        self._embedding = Embedding(
            read.matrix("transformer.embeddings.word_embeddings.weight", c.vocab_rows, c.hidden)
        )
        self._blocks = [_read_block(read, layer, c, read_linear) for layer in range(len(c.kinds))]
        self._norm = RMSNorm(read.tensor("transformer.ln_f.weight", c.hidden), c.norm_eps)
        self._head = read.head("lm_head.weight", c.vocab_rows, c.hidden, self._embedding, tied=True)
        self._rotary = Rotary(c.rotary_width, c.rotary_base, device) if c.rotary_width else None
        self._has_windows = c.window is not None
        self.weight_bytes = read.num_bytes
        self.matmul_params, self.head_params = read.matmul_params, read.head_params

    def forward(self, tokens: Tensor, batch: Packed, pool: StateTensors) -> Tensor:
        """See `Model.forward`."""
        x = self._embedding(tokens)
        places = advance(pool, batch, tokens.shape[0], self._rotary) if self._has_windows else None
        for block in self._blocks:
            x = block(x, batch, pool, places, self.dtype)
        return self._norm(x, self.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """See `Model.logits`."""
        return self._head(hidden)


def _state_tensors(c: BasedConfig, dtype: torch.dtype) -> Iterator[StateTensor]:
    if c.linear is not None:
        shape = (c.linear.heads, c.linear.value + 1, c.linear.features)
        yield StateTensor("linear", c.layers("linear"), shape, torch.float32)
    if c.conv is not None:
        yield StateTensor("conv", c.layers("conv"), (c.conv.width - 1, c.conv.inner), dtype)
    if c.window is not None:
        yield from c.window.state(c.layers("window"), dtype)


def load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Based:
    """The authors' published files."""
    return Based(checkpoint, read_config(checkpoint), device, dtype)
