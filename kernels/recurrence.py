"""The recurrence that most of the family shares: one operator, told apart by which inputs it is given.

    S' = D * S + (S a) b^T + v k^T        y = S' q

S is V-first, [V, K] per head; D scales it elementwise. Step and scan are the same operator: a step is the case where
every sequence has one token.

    family            D                                          also
    Mamba             exp(step rate), rate [H, V, K]             v enters as step v; skip; gate
    Mamba-2           exp(step rate), rate [H]                   v enters as step v; skip
    RetNet, mLSTM     exp(log_decay [T, H])
    GLA, HGRN2        exp(log_decay [T, H, K])
    RWKV-5, RWKV-6    exp(log_decay [T, H, K])                   bonus: y reads S before the update
    DeltaNet          1                                          beta; normalize
    Gated DeltaNet    exp(log_decay [T, H])                      beta; normalize
    KDA               exp(log_decay [T, H, K])                   beta; normalize
    RWKV-7            exp(log_decay [T, H, K])                   a, b

The delta rule is a = -beta D k, b = k, with v entering as beta v. A decay that is the same for all tokens is expanded
over them, which costs no memory. Every operand may have fewer heads than the state: consecutive heads share one.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.kernels import dispatch
from ostinato.kernels.packed import Packed, read_slots, write_slots
from ostinato.kernels.treatment import treated

NORMALIZE_EPS = 1e-6  # inside the root, as in flash-linear-attention's l2norm
MOST_FORMS = 4096  # combinations of shapes that are remembered as checked


def recurrence_ref(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    src: Tensor,
    dst: Tensor,
    starts: Tensor,
    longest: int,
    *,
    log_decay: Tensor | None = None,
    rate: Tensor | None = None,
    step: Tensor | None = None,
    step_bias: Tensor | None = None,
    beta: Tensor | None = None,
    a: Tensor | None = None,
    b: Tensor | None = None,
    bonus: Tensor | None = None,
    skip: Tensor | None = None,
    gate: Tensor | None = None,
    normalize: bool = False,
    scale: float = 1.0,
) -> Tensor:
    """The equation above, token by token, for all sequences that have that many. Differentiable."""
    tokens, heads = q.shape[0], state.shape[1]
    q, k, x = (_per_head(operand, heads) for operand in (q, k, v))
    if normalize:
        q, k = (row * torch.rsqrt(row.square().sum(-1, keepdim=True) + NORMALIZE_EPS) for row in (q, k))
    q = q * scale
    v, decay = x, torch.ones((), device=q.device).expand(tokens, heads, 1, 1)  # [T, H, V or 1, K or 1]
    if rate is not None and step is not None:
        step = step.float() if step_bias is None else F.softplus(step.float() + step_bias)
        step = step.view(tokens, heads, -1)
        v, decay = x * step, torch.exp(step.unsqueeze(-1) * rate.view(heads, *(rate.shape[1:] or (1, 1))))
    if log_decay is not None:
        decay = _per_head(log_decay.view(*log_decay.shape[:2], -1), heads).exp().unsqueeze(-2)
    states, rows, order = read_slots(state, src).float(), [torch.empty_like(x[:0])], [starts[:0].long()]
    for t in range(longest):
        active = torch.nonzero(starts[1:] - starts[:-1] > t).flatten()
        at = starts[:-1][active].long() + t
        before, key, value = states[active], k[at].unsqueeze(-2), v[at].unsqueeze(-1)
        decayed = before * decay[at]
        if beta is not None:
            recalled = (decayed * key).sum(-1, keepdim=True)
            value = (value - recalled) * _per_head(beta[at].unsqueeze(-1), heads).unsqueeze(-1)
        after = decayed + value * key
        if a is not None and b is not None:
            removed = (before * _per_head(a[at], heads).unsqueeze(-2)).sum(-1, keepdim=True)
            after = after + removed * _per_head(b[at], heads).unsqueeze(-2)
        read = after if bonus is None else before + value * key * bonus.unsqueeze(-2)
        rows.append((read * q[at].unsqueeze(-2)).sum(-1))
        order.append(at)
        states = states.index_copy(0, active, after)
    write_slots(state, dst, states)
    y = torch.cat(rows)[torch.argsort(torch.cat(order))]
    if skip is not None:
        y = y + x * skip.view(heads, -1)
    return y if gate is None else y * F.silu(gate.float())


def _per_head(x: Tensor, heads: int) -> Tensor:
    """[T, G, ...] of any float dtype -> [T, heads, ...] fp32: consecutive heads share a group."""
    return x.float().repeat_interleave(heads // x.shape[1], dim=1)


def _recurrence_meta(q: Tensor, k: Tensor, v: Tensor, state: Tensor, *_: object, **__: object) -> Tensor:
    return q.new_empty((q.shape[0], *state.shape[1:3]), dtype=torch.float32)


dispatch.define(
    "recurrence(Tensor q, Tensor k, Tensor v, Tensor(a!) state, Tensor src, Tensor dst, Tensor starts, int longest, *, "
    "Tensor? log_decay=None, Tensor? rate=None, Tensor? step=None, Tensor? step_bias=None, Tensor? beta=None, "
    "Tensor? a=None, Tensor? b=None, Tensor? bonus=None, Tensor? skip=None, Tensor? gate=None, bool normalize=False, "
    "float scale=1.0) -> Tensor",
    reference=recurrence_ref,
    meta=_recurrence_meta,
)


def recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: Tensor,
    batch: Packed,
    *,
    log_decay: Tensor | None = None,
    rate: Tensor | None = None,
    step: Tensor | None = None,
    step_bias: Tensor | None = None,
    beta: Tensor | None = None,
    a: Tensor | None = None,
    b: Tensor | None = None,
    bonus: Tensor | None = None,
    skip: Tensor | None = None,
    gate: Tensor | None = None,
    normalize: bool = False,
    scale: float = 1.0,
) -> Tensor:
    """Runs the recurrence over packed sequences, in place by slot.

    Operands per token are fp32, bf16 or fp16, each with a head count G that divides H, contiguous in the last
    dimension: q, k: [T, G, K]; v: [T, G, V]; log_decay: natural logarithm, [T, G] or [T, G, K]; step: [T, H] or
    [T, H, V]; beta: [T, G]; a, b: [T, G, K]; gate: [T, H, V]. Parameters are fp32: rate: [H] or [H, V, K]; step_bias
    (then step enters as softplus(step + step_bias)): [H] or [H, V]; bonus: [H, K]; skip: [H] or [H, V].
    state: [slots, H, V, K] fp32 or bf16, contiguous.

    `normalize` scales q and k to unit length, `scale` multiplies q, `skip` v is added to y, and y is multiplied by
    silu(gate), in that order. Returns y: [T, H, V] fp32. Raises TypeError, ValueError: operands that do not fit.

    Sources: Gu and Dao 2023 (Mamba), section 3; Dao and Gu 2024 (Mamba-2), section 6; Yang et al. 2023 (GLA),
    section 4; Yang et al. 2024 (Gated DeltaNet), equation 10; Peng et al. 2024 (RWKV-6), section 4; Peng et al. 2025
    (RWKV-7), section 4.
    """
    batch.check(q.shape[0])
    optional = {
        "log_decay": log_decay, "rate": rate, "step": step, "step_bias": step_bias, "beta": beta, "a": a, "b": b,
        "bonus": bonus, "skip": skip, "gate": gate,
    }  # fmt: skip
    given = {name: x for name, x in optional.items() if x is not None}
    if batch.treatment is not None:
        k, given = treated(k, state, batch, given, batch.treatment)
    _check_once(q, k, v, state, given)
    y: Tensor = dispatch.operators(q).recurrence(
        q, k, v, state, batch.src, batch.dst, batch.starts, batch.longest, **given, normalize=normalize, scale=scale
    )
    return y


_PAIRS = ({"rate", "step"}, {"a", "b"})
_EXCLUSIVE = ({"rate", "log_decay"}, {"a", "beta"}, {"bonus", "a"}, {"bonus", "beta"}, {"rate", "a"}, {"rate", "beta"})
_PARAMETERS = {"rate", "step_bias", "bonus", "skip"}
_OPERANDS = (torch.float32, torch.bfloat16, torch.float16)


_known_to_fit: set[tuple[object, ...]] = set()


def _check_once(q: Tensor, k: Tensor, v: Tensor, state: Tensor, given: dict[str, Tensor]) -> None:
    """A decode step would spend longer on checks than on small recurrences, and has the same shapes every time."""
    if not state.is_contiguous():
        raise ValueError("recurrence: the state pool must be contiguous, since it is updated in place")
    forms = tuple((x.shape, x.dtype) for x in (q, k, v, state, *given.values()))
    if (key := (forms, *given)) not in _known_to_fit:
        _check(q, k, v, state, given)
        if len(_known_to_fit) < MOST_FORMS:
            _known_to_fit.add(key)


def _check(q: Tensor, k: Tensor, v: Tensor, state: Tensor, given: dict[str, Tensor]) -> None:
    names = given.keys()
    if any(len(pair & names) == 1 for pair in _PAIRS) or any(both <= names for both in _EXCLUSIVE):
        raise ValueError(f"recurrence: {sorted(names)} do not go together")
    if "step_bias" in names and "step" not in names:
        raise ValueError("recurrence: a step_bias needs a step")
    if not _fits(q, k, v, state, given):
        found = {name: tuple(x.shape) for name, x in {"q": q, "k": k, "v": v, "state": state, **given}.items()}
        raise ValueError(f"recurrence: shapes do not fit: {found}")
    for name, x in {"q": q, "k": k, "v": v, **given}.items():
        if x.dtype not in ((torch.float32,) if name in _PARAMETERS else _OPERANDS):
            raise TypeError(f"recurrence: {name} is {x.dtype}")
    if state.dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f"recurrence: the state must be float32 or bfloat16, got {state.dtype}")


def _fits(q: Tensor, k: Tensor, v: Tensor, state: Tensor, given: dict[str, Tensor]) -> bool:
    if state.dim() != 4 or not all(state.shape[1:]):
        return False
    tokens, (_, heads, rows, width) = q.shape[0], state.shape
    key, value = (width,), (rows,)
    per_token = {"log_decay": ((), key), "beta": ((),), "a": (key,), "b": (key,)}
    whole = {
        "rate": ((heads,), (heads, rows, width)),
        "step": ((tokens, heads), (tokens, heads, rows)),
        "step_bias": ((heads,), (heads, rows)),
        "bonus": ((heads, width),),
        "skip": ((heads,), (heads, rows)),
        "gate": ((tokens, heads, rows),),
    }
    operands = [(q, (key,)), (k, (key,)), (v, (value,)), *((given[n], per_token[n]) for n in per_token if n in given)]
    return (
        all(x.dim() >= 2 and x.shape[0] == tokens and tuple(x.shape[2:]) in rest for x, rest in operands)
        and all(x.shape[1] > 0 and heads % x.shape[1] == 0 for x, _ in operands)
        and all(tuple(given[name].shape) in shapes for name, shapes in whole.items() if name in given)
        and ("rate" not in given or given["rate"].dim() - 1 == 2 * (given["step"].dim() - 2))
        and ("step_bias" not in given or given["step_bias"].shape == given["step"].shape[1:])
    )
