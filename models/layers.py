"""Building blocks that several architectures share, and the reading of their weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.kernels import rows
from ostinato.kernels.linear import Activation, Linear


class TensorSource(Protocol):
    """Where weights are taken from: a Checkpoint, or one seen under other names."""

    def has(self, name: str) -> bool:
        """Whether there is such a tensor, taken or not."""

    def shape(self, name: str, dims: int | None = None) -> tuple[int, ...]:
        """Its shape. Raises CheckpointError: missing, or not of `dims` dimensions."""

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor, once. Raises CheckpointError: missing, taken before, or of another shape."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """weight: [vocabulary, hidden] in the checkpoint's dtype. Lookup gives fp32, the dtype of the residual stream."""

    weight: Tensor

    def __call__(self, tokens: Tensor) -> Tensor:
        """tokens: [T] int64. Returns [T, hidden] fp32."""
        return F.embedding(tokens, self.weight).float()


@dataclass(slots=True)
class WeightReader:
    """Takes tensors out of a checkpoint and puts them where they are computed with.

    Matrices go to `dtype`; vectors (norms, biases, decays, mixes) to fp32, since they are small and rounding hurts.
    What `source` raises passes through. `num_bytes` counts what was placed, and the copies made of it;
    `matmul_params` and `head_params` count the elements of projections (see `ostinato.models.base.Model`).
    """

    source: TensorSource
    device: torch.device
    dtype: torch.dtype
    num_bytes: int = 0
    matmul_params: int = 0
    head_params: int = 0

    def tensor(self, name: str, *shape: int) -> Tensor:
        """An fp32 tensor of exactly that shape."""
        return self._placed(self.source.take(name, shape), torch.float32)

    def vector(self, name: str, size: int) -> Tensor:
        """An fp32 vector, whose leading dimensions of one (as RWKV writes them) are dropped."""
        found = self.source.shape(name) if self.source.has(name) else (size,)
        ones = len(found) - 1 if set(found[:-1]) <= {1} else 0
        return self.tensor(name, *(1,) * ones, size).view(size)

    def matrix(self, name: str, *shape: int) -> Tensor:
        """A matrix in the dtype of the computation."""
        return self._placed(self.source.take(name, shape), self.dtype)

    def linear(self, name: str, out: int, into: int, *, bias: str | None = None) -> Linear:
        """A projection [out, into]; `bias` names its bias vector."""
        return self.projection(self.matrix(name, out, into), None if bias is None else self.vector(bias, out))

    def projection(self, weight: Tensor, bias: Tensor | None = None) -> Linear:
        """A projection by tensors that were read before: weight [out, into], in any orientation; bias [out]."""
        self.matmul_params += weight.numel()
        return Linear(weight, bias)

    def joined(self, parts: Sequence[tuple[str, int]], into: int, *, biases: Sequence[str] = ()) -> Linear:
        """Several projections (name, out) of one input as a single product, outputs side by side.

        `biases` names the bias of each, or nothing where they have none.
        """
        self.matmul_params += into * sum(out for _, out in parts)
        weight = torch.cat([self.matrix(name, out, into) for name, out in parts])
        if not biases:
            return Linear(weight)
        bias = [self.vector(name, out) for name, (_, out) in zip(biases, parts, strict=True)]
        return Linear(weight, torch.cat(bias))

    def head(self, name: str, rows: int, hidden: int, embedding: Embedding, tied: bool) -> Linear:
        """The output projection [rows, hidden]: `embedding` itself if it is tied and `name` is not on disk."""
        self.head_params += rows * hidden
        if not tied or self.source.has(name):
            return Linear(self.matrix(name, rows, hidden))
        head = Linear(embedding.weight)
        if head.packed:  # a copy for the product, besides the one for lookup
            self.num_bytes += embedding.weight.numel() * embedding.weight.element_size()
        return head

    def _placed(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        # A copy, always: the checkpoint's memory map is closed after loading.
        placed = tensor.to(device=self.device, dtype=dtype, copy=True).contiguous()
        self.num_bytes += placed.numel() * placed.element_size()
        return placed


@dataclass(frozen=True, slots=True)
class RMSNorm:
    """weight: [D] fp32, or [G, D] to normalise groups apart."""

    weight: Tensor
    eps: float

    def __call__(
        self, x: Tensor, dtype: torch.dtype, *, gate: Tensor | None = None, gate_first: bool = False
    ) -> Tensor:
        """x: [..., D] fp32; gate: as `rows.rms_norm` says. Returns x's shape in `dtype`."""
        return rows.rms_norm(x, self.weight, self.eps, dtype, gate=gate, gate_first=gate_first)


@dataclass(frozen=True, slots=True)
class LayerNorm:
    """weight, bias: [D] fp32, or [H, D] to normalise heads apart."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """x: [..., D] or [..., H, D] fp32. Returns the same shape in `dtype`."""
        return rows.layer_norm(x, self.weight, self.bias, self.eps, dtype)


@dataclass(frozen=True, slots=True)
class GatedMLP:
    """down(silu(gate x) * up x) (Shazeer 2020, SwiGLU). `gate_up` holds both projections, gate first.

    activation: or another gate; output_scale: multiplies what is projected at the end.
    """

    gate_up: Linear
    down: Linear
    activation: Activation = "swiglu"
    output_scale: float = 1.0

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        """x: [T, hidden]; residual: [T, hidden] fp32, added to the result. Returns [T, hidden] fp32."""
        if self.output_scale == 1:
            return self.down(self.inner(x, self.down.dtype), residual)
        return self.down(self.inner(x, torch.float32) * self.output_scale, residual)

    def inner(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """What `down` projects, [T, inner] in `dtype`."""
        return self.gate_up.activated(x, self.activation, dtype)


@dataclass(frozen=True, slots=True)
class LowRank:
    """x -> up(activation(down x)) + bias: `loramlp` of the RWKV-7 paper."""

    down: Linear
    up: Linear

    def __call__(self, x: Tensor, activation: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """x: [T, in]; no `activation` means none. Returns [T, out] fp32."""
        low = self.down(x)
        return self.up(low if activation is None else activation(low))
