"""Attention over a sliding window, whose keys and values live in a ring by slot: decode and prefill in one operator.

    y_p = sum_j softmax_j(scale q_p . k_j) v_j        over the positions j = max(0, p - W + 1) .. p

The W positions of a window include the query's own: the convention of Mistral, Samba and RecurrentGemma in transformers
(where key j is seen by query p if j > p - W) and of flash-linear-attention (where the window is W - 1 to the left).

The ring is the state: the key and the value of position p lie in row p % W, so that a position overwrites the one that
its window leaves behind, and a full ring is never moved. A row that no position has reached yet is never read.
"""

import torch
from torch import Tensor

from ostinato.kernels import dispatch
from ostinato.kernels.packed import Packed


def window_attention_ref(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    past: Tensor,
    src: Tensor,
    dst: Tensor,
    starts: Tensor,
    longest: int,
    scale: float,
) -> Tensor:
    """The equation above, sequence by sequence, with all scores at once. Differentiable."""
    window, bounds = keys.shape[1], starts.tolist()
    rows = [q.new_empty(q.shape, dtype=torch.float32)[:0]]
    for i, (slot, target, read) in enumerate(zip(src.tolist(), dst.tolist(), past.tolist(), strict=True)):
        chunk = slice(bounds[i], bounds[i + 1])
        positions = torch.arange(max(0, read - window), read + chunk.stop - chunk.start, device=q.device)
        kept = positions[positions < read] % window
        seen_k, seen_v = (torch.cat([ring[slot, kept], new[chunk]]) for ring, new in ((keys, k), (values, v)))
        rows.append(_banded_attention(q[chunk], seen_k, seen_v, window, scale))
        if target >= 0:
            for ring, seen in ((keys, seen_k), (values, seen_v)):
                ring[target, positions[-window:] % window] = seen[-window:]
    return torch.cat(rows)


def _banded_attention(q: Tensor, k: Tensor, v: Tensor, window: int, scale: float) -> Tensor:
    """q [n, H, D] are the last n of the positions whose k, v are [m, G, D]. Returns [n, H, D] fp32."""
    key, value = (x.float().repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = scale * torch.einsum("nhd,mhd->hnm", q.float(), key)
    at = torch.arange(k.shape[0], device=q.device)
    back = at[k.shape[0] - q.shape[0] :, None] - at  # how far behind the query a key lies
    weights = scores.masked_fill((back < 0) | (back >= window), -torch.inf).softmax(-1)
    return torch.einsum("hnm,mhd->nhd", weights, value)


def _window_attention_meta(q: Tensor, *_: object) -> Tensor:
    return q.new_empty(q.shape, dtype=torch.float32)


dispatch.define(
    "window_attention(Tensor q, Tensor k, Tensor v, Tensor(a!) keys, Tensor(b!) values, Tensor past, Tensor src, "
    "Tensor dst, Tensor starts, int longest, float scale) -> Tensor",
    reference=window_attention_ref,
    meta=_window_attention_meta,
)


def window_attention(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, past: Tensor, batch: Packed, *, scale: float
) -> Tensor:
    """Attends from every token to its window, over packed sequences, and leaves the last W positions in the ring.

    q: [T, H, D], and k, v: [T, G, D], where consecutive H / G query heads share a key head: fp32, bf16 or fp16, each
    token's row contiguous, tokens any distance apart; position embeddings, if any, are applied already. keys, values:
    [slots, W, G, D] in the dtype of k and v, contiguous: the ring, updated in place. past: [B] int32 or int64, how many
    tokens each sequence has read before these; 0 where its source is -1.

    A chunk may be longer than W. Rows of the ring that no position has reached keep what they held. Returns [T, H, D]
    fp32. Raises TypeError, ValueError: operands that do not fit.

    Sources: Jiang et al. 2023 (Mistral 7B), section 2, sliding window and rolling buffer; De et al. 2024 (Griffin),
    section 2.4; Ainslie et al. 2023 (grouped queries).
    """
    batch.check(q.shape[0])
    _check(q, k, v, keys, values, past, batch)
    y: Tensor = dispatch.operators(q).window_attention(
        q, k, v, keys, values, past, batch.src, batch.dst, batch.starts, batch.longest, scale
    )
    return y


_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def _check(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, past: Tensor, batch: Packed) -> None:
    operands = {"q": q, "k": k, "v": v, "keys": keys, "values": values}
    if not _fits(q, k, v, keys, values):
        raise ValueError(f"window_attention: shapes do not fit: { {n: tuple(x.shape) for n, x in operands.items()} }")
    if q.dtype not in _FLOATS or k.dtype not in _FLOATS or not k.dtype == v.dtype == keys.dtype == values.dtype:
        raise TypeError(f"window_attention: dtypes do not fit: { {n: x.dtype for n, x in operands.items()} }")
    if past.shape != batch.src.shape or past.dtype not in (torch.int32, torch.int64) or not past.is_contiguous():
        raise ValueError(f"window_attention: past must be [B] int32 or int64, got {tuple(past.shape)} {past.dtype}")
    if not (keys.is_contiguous() and values.is_contiguous()):
        raise ValueError("window_attention: the ring must be contiguous, since it is updated in place")
    for name, x in {"q": q, "k": k, "v": v}.items():
        if x.shape[0] and not x[0].is_contiguous():
            raise ValueError(f"window_attention: a token of {name} must be contiguous, got strides {x.stride()}")


def _fits(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> bool:
    return (
        (q.dim(), k.dim(), keys.dim()) == (3, 3, 4)
        and k.shape == v.shape == (q.shape[0], *keys.shape[2:])
        and keys.shape == values.shape
        and q.shape[2] == keys.shape[3]
        and keys.shape[1] > 0
        and q.shape[1] % max(1, keys.shape[2]) == 0
    )
