"""Attention over a sliding window, whose keys and values live in a ring by slot: decode and prefill in one operator.

    y_p = sum_j softmax_j(scale q_p . k_j) v_j        over the positions j = max(0, p - W + 1) .. p

The W positions of a window include the query's own: the convention of Mistral, Samba and RecurrentGemma in transformers
(where key j is seen by query p if j > p - W) and of flash-linear-attention (where the window is W - 1 to the left).

The ring is the state: the key and the value of position p lie in row p % W, so that a position overwrites the one that
its window leaves behind, and a full ring is never moved. A row that no position has reached yet is never read.

With S sinks (Xiao et al. 2023, StreamingLLM; Han et al. 2023, LM-Infinite), the first S positions are seen by every
later one and are never overwritten: position p < S lies in row p, any other one in row S + (p - S) % (W - S), and a
query sees the sinks and the last W - S positions. Up to W positions that is full attention.

Positions are then those within the cache, as in StreamingLLM: between positions in the ring they differ as the true
ones do, and from a sink a query is never further away than W - 1, the largest distance that occurs in full attention
over W tokens; so a model meets no distance that it was not trained for. Keys are stored turned by their true positions.
For that reason a query comes in two forms: `q` is turned by its position p and meets the ring, `far` is turned by
min(p, W - 1) and meets the sinks.
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
    far: Tensor | None = None,
    sinks: int = 0,
) -> Tensor:
    """The equation above, sequence by sequence, with all scores at once. Differentiable."""
    recent, bounds, far = keys.shape[1] - sinks, starts.tolist(), q if far is None else far
    rows = [q.new_empty(q.shape, dtype=torch.float32)[:0]]
    for i, (slot, target, read) in enumerate(zip(src.tolist(), dst.tolist(), past.tolist(), strict=True)):
        chunk = slice(bounds[i], bounds[i + 1])
        end = read + chunk.stop - chunk.start
        positions = torch.arange(end, device=q.device)
        positions = positions[(positions < sinks) | (positions >= read - recent)]
        where = torch.where(positions < sinks, positions, sinks + (positions - sinks) % recent)
        kept = where[positions < read]
        seen_k, seen_v = (torch.cat([ring[slot, kept], new[chunk]]) for ring, new in ((keys, k), (values, v)))
        rows.append(_banded_attention(q[chunk], far[chunk], seen_k, seen_v, positions, recent, sinks, scale))
        if target >= 0:
            last = (positions < sinks) | (positions >= end - recent)
            for ring, seen in ((keys, seen_k), (values, seen_v)):
                ring[target, where[last]] = seen[last]
    return torch.cat(rows)


def _banded_attention(
    q: Tensor, far: Tensor, k: Tensor, v: Tensor, positions: Tensor, recent: int, sinks: int, scale: float
) -> Tensor:
    """q, far [n, H, D] are the last n of the m positions whose k, v are [m, G, D]. Returns [n, H, D] fp32."""
    key, value = (x.float().repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    near_scores, far_scores = (scale * torch.einsum("nhd,mhd->hnm", x.float(), key) for x in (q, far))
    is_sink = positions < sinks
    back = positions[k.shape[0] - q.shape[0] :, None] - positions  # how far behind the query a key lies
    hidden = (back < 0) | ((back >= recent) & ~is_sink)
    weights = torch.where(is_sink, far_scores, near_scores).masked_fill(hidden, -torch.inf).softmax(-1)
    return torch.einsum("hnm,mhd->nhd", weights, value)


def _window_attention_meta(q: Tensor, *_: object) -> Tensor:
    return q.new_empty(q.shape, dtype=torch.float32)


dispatch.define(
    "window_attention(Tensor q, Tensor k, Tensor v, Tensor(a!) keys, Tensor(b!) values, Tensor past, Tensor src, "
    "Tensor dst, Tensor starts, int longest, float scale, Tensor? far=None, int sinks=0) -> Tensor",
    reference=window_attention_ref,
    meta=_window_attention_meta,
)


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    values: Tensor,
    past: Tensor,
    batch: Packed,
    *,
    scale: float,
    far: Tensor | None = None,
    sinks: int = 0,
) -> Tensor:
    """Attends from every token to its window, over packed sequences, and leaves in the ring what later ones see.

    q: [T, H, D], and k, v: [T, G, D], where consecutive H / G query heads share a key head: fp32, bf16 or fp16, each
    token's row contiguous, tokens any distance apart; position embeddings, if any, are applied already. keys, values:
    [slots, W, G, D] in the dtype of k and v, contiguous: the ring, updated in place. past: [B] int32 or int64, how many
    tokens each sequence has read before these; 0 where its source is -1. sinks: how many rows of the ring hold the
    first positions for good, fewer than W. far: like q, the queries that meet the sinks; None: q itself.

    A chunk may be longer than W. Rows of the ring that no position has reached keep what they held. Returns [T, H, D]
    fp32. Raises TypeError, ValueError: operands that do not fit.

    Sources: Jiang et al. 2023 (Mistral 7B), section 2, sliding window and rolling buffer; De et al. 2024 (Griffin),
    section 2.4; Ainslie et al. 2023 (grouped queries); Xiao et al. 2023 (StreamingLLM), section 3.2.
    """
    batch.check(q.shape[0])
    _check(q, k, v, keys, values, past, batch)
    _check_sinks(q, far, sinks, keys.shape[1])
    y: Tensor = dispatch.operators(q).window_attention(
        q, k, v, keys, values, past, batch.src, batch.dst, batch.starts, batch.longest, scale, far, sinks
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


def _check_sinks(q: Tensor, far: Tensor | None, sinks: int, window: int) -> None:
    if not 0 <= sinks < window:
        raise ValueError(f"window_attention: sinks must be fewer than the {window} rows of the ring, got {sinks}")
    if far is None:
        return
    if far.shape != q.shape or far.dtype != q.dtype:
        raise ValueError(f"window_attention: far must be like q, got {tuple(far.shape)} {far.dtype}")
    if far.shape[0] and not far[0].is_contiguous():
        raise ValueError(f"window_attention: a token of far must be contiguous, got strides {far.stride()}")


def _fits(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> bool:
    return (
        (q.dim(), k.dim(), keys.dim()) == (3, 3, 4)
        and k.shape == v.shape == (q.shape[0], *keys.shape[2:])
        and keys.shape == values.shape
        and q.shape[2] == keys.shape[3]
        and keys.shape[1] > 0
        and q.shape[1] % max(1, keys.shape[2]) == 0
    )
