"""The recurrence that Mamba, GLA and RWKV-7 (and most of their family) share.

    S' = D * S + (S a) b^T + v k^T        y = S' q

S is V-first, [V, K] per head; D scales it elementwise. Step and scan are the same operator: a step is the case where
every sequence has one token.

    family    D                         a, b              k, v, q
    Mamba     exp(step_t rate), [V,K]   none              B, step x, C    (H = 1, V channels, K state size; as in the
                                                                          authors' code, B is discretized by Euler)
    GLA       factor per K              none              k, v, scaled q
    RWKV-7    factor per K              -kk, kk a         k, v, r
"""

import torch
from torch import Tensor

from ostinato.kernels.dispatch import use_native
from ostinato.kernels.packed import check_packed


def recurrence_ref(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    slots: Tensor,
    starts: Tensor,
    *,
    decay: Tensor | None = None,
    rate: Tensor | None = None,
    step: Tensor | None = None,
    a: Tensor | None = None,
    b: Tensor | None = None,
) -> Tensor:
    """The equation above, token by token, for all sequences that have that many."""
    y = torch.empty_like(v)
    lengths, count = starts[1:] - starts[:-1], slots.numel()
    # One more row for each sequence, so that padding has somewhere to read zeros and to write what is dropped.
    spare = state.shape[0] + torch.arange(count, device=slots.device)
    rows = torch.where(slots >= 0, slots, spare).long()
    padded = torch.cat([state, state.new_zeros((count, *state.shape[1:]))])
    for t in range(int(lengths.max()) if lengths.numel() else 0):
        active = lengths > t
        at, row = (starts[:-1][active] + t).long(), rows[active]
        before = padded[row]
        s = before
        if decay is not None:
            s = s * decay[at].unsqueeze(-2)
        if rate is not None and step is not None:
            s = s * torch.exp(step[at].unsqueeze(-1) * rate)
        if a is not None and b is not None:
            s = s + (before * a[at].unsqueeze(-2)).sum(-1, keepdim=True) * b[at].unsqueeze(-2)
        s = s + v[at].unsqueeze(-1) * k[at].unsqueeze(-2)
        y[at] = (s * q[at].unsqueeze(-2)).sum(-1)
        padded = padded.index_copy(0, row, s)
    kept = slots[slots >= 0].long()
    state[kept] = padded[kept]
    return y


def recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    slots: Tensor,
    starts: Tensor,
    *,
    decay: Tensor | None = None,
    rate: Tensor | None = None,
    step: Tensor | None = None,
    a: Tensor | None = None,
    b: Tensor | None = None,
) -> Tensor:
    """Runs the recurrence over packed sequences, in place by slot. All tensors fp32.

    q, k: [T, H, K]; v: [T, H, V]; state: [slots, H, V, K]; slots, starts: see `ostinato.kernels.packed`;
    decay: [T, H, K] factors, or rate [H, V, K] and step [T, H, V] for D = exp(step rate), or neither for D = 1;
    a, b: [T, H, K] for the delta term, or neither. Returns y: [T, H, V].

    Sources: Gu and Dao 2023 (Mamba), section 3; Yang et al. 2023 (GLA), section 4; Peng et al. 2025 (RWKV-7),
    section 4.
    """
    check_packed(q.shape[0], slots, starts)
    _check_shapes(q, k, v, state, decay=decay, rate=rate, step=step, a=a, b=b)
    if use_native(q):
        factor = decay if rate is None else rate
        contiguous = [None if x is None else x.contiguous() for x in (q, k, v, factor, step, a, b)]
        q_, k_, v_, *optional = contiguous
        y: Tensor = torch.ops.ostinato.recurrence(q_, k_, v_, state, slots, starts, *optional)
        return y
    return recurrence_ref(q, k, v, state, slots, starts, decay=decay, rate=rate, step=step, a=a, b=b)


def _check_shapes(q: Tensor, k: Tensor, v: Tensor, state: Tensor, **optional: Tensor | None) -> None:
    tokens, heads, width = q.shape
    rows = v.shape[-1]
    shapes = {"decay": q.shape, "a": q.shape, "b": q.shape, "rate": (heads, rows, width), "step": v.shape}
    given = {name: x for name, x in optional.items() if x is not None}
    pairs_whole = ("rate" in given) == ("step" in given) and ("a" in given) == ("b" in given)
    if not pairs_whole or ("rate" in given and ("decay" in given or "a" in given)):
        raise ValueError(f"recurrence: {sorted(given)} do not go together")
    wrong = [name for name, x in given.items() if x.shape != shapes[name]]
    if k.shape != q.shape or v.shape != (tokens, heads, rows) or state.shape[1:] != (heads, rows, width) or wrong:
        found = {name: tuple(x.shape) for name, x in {"q": q, "k": k, "v": v, "state": state, **given}.items()}
        raise ValueError(f"recurrence: shapes do not fit: {found}")
    if any(x.dtype != torch.float32 for x in (q, k, v, state, *given.values())):
        raise TypeError("recurrence: all tensors must be float32")
    if not state.is_contiguous():
        raise ValueError("recurrence: the state pool must be contiguous, since it is updated in place")
