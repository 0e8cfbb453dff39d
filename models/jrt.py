"""JRT-RNN (Arora et al. 2024, Just read twice, section 4): BASED with prefix linear attention.

With M tokens in the encoder region, and keys and values of their own (ke, ve) for what is seen from everywhere:

    y_i = phi(q_i) (sum_{j <= i} phi(k_j) v_j + sum_{j <= M} phi(ke_j) ve_j)
          / phi(q_i) (sum_{j <= i} phi(k_j) + sum_{j <= M} phi(ke_j))

So a sequence that begins is read twice in each layer: the sums over its region first, and then, from these sums on, all
of it as BASED reads it. Behind the region nothing of this is left but the sums: a step, and a state, are BASED's.

A prompt shorter than the region is padded on the left, as the authors' evaluation does it: see `PADDING`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from ostinato.kernels.linear import Linear
from ostinato.kernels.packed import Packed
from ostinato.kernels.recurrence import recurrence
from ostinato.models.base import StateTensors
from ostinato.models.based import Based, TaylorAttention, read_taylor
from ostinato.models.based_config import BasedConfig, LinearSizes, read_config
from ostinato.models.checkpoint import Checkpoint
from ostinato.models.errors import UnsupportedModelError
from ostinato.models.layers import WeightReader

# GPT-2's space, which the authors' evaluation fills the region with. Convolutions and windows see it like any other
# token; prefix linear attention takes its keys, of both kinds, for zero. Its values are not: since phi(0) has a one in
# it, each padding adds something to the sums.
PADDING = 220
_AMBIGUOUS_WINDOW = 4096 // 2 + 1  # the authors' code then gives another one to layers 7 and 17


@dataclass(frozen=True, slots=True)
class Region:
    """The encoder regions of the sequences that begin in one forward pass, R tokens in all.

    rows: [R] int64, which of the pass's tokens they are; batch: they alone, from nothing into their slots; onward: all
    of the pass's tokens, those that begin from what is in their slots by then; padding: [T, 1] bool, None without any.
    """

    rows: Tensor
    batch: Packed
    onward: Packed
    padding: Tensor | None


@dataclass(frozen=True, slots=True)
class WithRegion(Packed):
    """What the layers of a forward pass get in which sequences begin."""

    region: Region | None = None


@dataclass(frozen=True, slots=True)
class PrefixAttention:
    """Section 4.1 of the paper. `decoder` reads as BASED does; `encoder` joins keys and values of the region."""

    decoder: TaylorAttention
    encoder: Linear

    def __call__(self, u: Tensor, batch: Packed, state: Tensor, residual: Tensor) -> Tensor:
        """As TaylorAttention, with the regions that `batch` tells of."""
        region = batch.region if isinstance(batch, WithRegion) else None
        if region is None:
            return self.decoder(u, batch, state, residual)
        self._sum_up(u, region, state)
        return self.decoder(u, region.onward, state, residual, keyless=region.padding)

    def _sum_up(self, u: Tensor, region: Region, state: Tensor) -> None:
        """Writes the sums over each region into its slot; what the recurrence reads out on the way is of no use."""
        k, v = self.encoder(u[region.rows]).split(self.decoder.sizes.joined[1:], dim=-1)
        features = self.decoder.features(k, None if region.padding is None else region.padding[region.rows])
        recurrence(features, features, self.decoder.with_ones(v), state, region.batch)


def _read_prefix(read: WeightReader, name: str, sizes: LinearSizes, hidden: int) -> PrefixAttention:
    parts = zip(("proj_k_enc", "proj_v_enc"), sizes.joined[1:], strict=True)
    encoder = read.joined([(f"{name}.{part}.weight", size) for part, size in parts], hidden)
    return PrefixAttention(read_taylor(read, name, sizes, hidden), encoder)


class JRT(Based):
    """See `ostinato.models.base.Model` and Based, whose state this one has."""

    family = "JRT-RNN"

    def __init__(self, checkpoint: Checkpoint, config: BasedConfig, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(checkpoint, config, device, dtype, _read_prefix)
        self._encoder_length = config.encoder_length
        if config.linear is not None:  # only the tokens of a region pass the encoders
            self.matmul_params -= config.layers("linear") * config.hidden * sum(config.linear.joined[1:])

    def forward(self, tokens: Tensor, batch: Packed, pool: StateTensors) -> Tensor:
        """See `Model.forward`. The region of a sequence that begins is padded here, and its padding read with it."""
        if not batch.begins or not self._encoder_length:
            return super().forward(tokens, batch, pool)
        padded_tokens, padded, rows = _padded(tokens, batch, self._encoder_length)
        return super().forward(padded_tokens, padded, pool)[rows]


def _padded(tokens: Tensor, batch: Packed, length: int) -> tuple[Tensor, WithRegion, Tensor]:
    """Tokens and batch with regions of `length` tokens, and the rows [T] int64 in them that the given tokens have.

    Lengths are looked up on the device, once for each step in which a sequence begins.
    """
    lengths = batch.starts.diff().tolist()
    missing = [max(0, length - count) if i in batch.begins else 0 for i, count in enumerate(lengths)]
    sizes = [count + more for count, more in zip(lengths, missing, strict=True)]
    starts = list(accumulate(sizes, initial=0))
    device = batch.starts.device
    rows = _ranges([(start + more, start + size) for start, more, size in zip(starts, missing, sizes, strict=False)])
    rows = rows.to(device)
    padding = torch.ones(starts[-1], 1, dtype=torch.bool, device=device).index_fill(0, rows, False)
    filled = tokens.new_full((starts[-1],), PADDING).index_copy(0, rows, tokens)
    padded = Packed(batch.src, batch.dst, torch.tensor(starts, dtype=torch.int32, device=device), max(sizes))
    region = _region(padded, batch.begins, starts, length, padding if any(missing) else None)
    return filled, WithRegion(padded.src, padded.dst, padded.starts, padded.longest, region=region), rows


def _region(
    padded: Packed, begins: Sequence[int], starts: Sequence[int], length: int, padding: Tensor | None
) -> Region:
    device = padded.starts.device
    chosen = torch.tensor(begins, device=device)
    slots = padded.dst[chosen]
    each = torch.arange(0, length * len(begins) + 1, length, dtype=torch.int32, device=device)
    return Region(
        rows=_ranges([(starts[i], starts[i] + length) for i in begins]).to(device),
        batch=Packed(torch.full_like(slots, -1), slots, each, length),
        onward=Packed(padded.src.index_copy(0, chosen, slots), padded.dst, padded.starts, padded.longest),
        padding=padding,
    )


def _ranges(bounds: Sequence[tuple[int, int]]) -> Tensor:
    return torch.cat([torch.arange(start, stop) for start, stop in bounds])


def load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> JRT:
    """The authors' published files.

    Raises CheckpointError, UnsupportedModelError: as `read_config`; the vocabulary has no token to pad with.
    """
    config, file = read_config(checkpoint), checkpoint.folder / "config.json"
    if config.vocab_size <= PADDING:
        raise UnsupportedModelError(
            f"{file}: vocab_size = {config.vocab_size} is not supported: prompts are padded with token {PADDING}"
        )
    if config.window is not None and config.window.window == _AMBIGUOUS_WINDOW:
        raise UnsupportedModelError(f"{file}: window_size = 4096 is not supported: it means 256 in two of the layers")
    return JRT(checkpoint, config, device, dtype)
