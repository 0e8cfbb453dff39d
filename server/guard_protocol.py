"""The request fields `state_guard`, `state_health` and `state_mitigation`, and what answers say about states."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel

from ostinato.engine.guard import LOOK_EVERY, GuardOptions, Reaction, StateHealth
from ostinato.engine.mitigation import Mitigation
from ostinato.server.validation import WireModel, must_be

REACTIONS = Literal["report", "stop", "restore"]


class GuardFields(WireModel):
    """See `GuardOptions`, which checks the ranges."""

    reaction: REACTIONS = "report"
    norm_limit: float | None = None
    every: int = LOOK_EVERY


class MitigationFields(WireModel):
    """See `Mitigation`, which checks the ranges. An empty object is for none at all."""

    forget: float = 1.0
    remember: float = 1.0
    clip_norm: float | None = None
    clip_every: int | None = None
    window: int | None = None


StateGuard = Annotated[
    REACTIONS | GuardFields,
    must_be('"report", "stop" or "restore", or an object with reaction, norm_limit and every'),
]


class StateHealthReply(BaseModel):
    """What the guard found of one choice's state when it ended. Norms are null where they are not finite.

    tokens: that it had read. norm, mean_norm: the largest and the mean Frobenius norm of a head. norm_growth: norm over
    that at the prompt's end. effective_decay: the mean factor of a token's decays, where the server adds them up.
    exceeded_at: tokens read at the first look that found too much.
    """

    tokens: int
    finite: bool
    norm: float | None
    mean_norm: float | None
    norm_growth: float | None
    effective_decay: float | None
    exceeded_at: int | None


def guard_of(given: REACTIONS | GuardFields | None) -> GuardOptions | None:
    """Raises RequestError: a value is out of range."""
    if given is None:
        return None
    fields = given if isinstance(given, GuardFields) else GuardFields(reaction=given)
    return GuardOptions(Reaction(fields.reaction), fields.norm_limit, fields.every)


def mitigation_of(given: MitigationFields | None) -> Mitigation | None:
    """Raises RequestError: a value is out of range."""
    return None if given is None else Mitigation(**given.model_dump())


def health_reply(health: StateHealth | None) -> StateHealthReply | None:
    """As an answer says it."""
    if health is None:
        return None
    norms = health.norms
    return StateHealthReply(
        tokens=health.tokens,
        finite=norms.finite,
        norm=_finite(norms.largest),
        mean_norm=_finite(norms.mean),
        norm_growth=health.norm_growth,
        effective_decay=norms.decay if norms.decay is None else _finite(norms.decay),
        exceeded_at=health.exceeded_at,
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
