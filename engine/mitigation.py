"""Remedies against state collapse: what a request or a server may ask for, and where in a text each of them acts.

    forget, remember    at every token, by the recurrence's operator
    clip_norm           at multiples of `clip_every` tokens of the log: no head's norm is larger then
    window              at multiples of `window` tokens: what was read before the one before is taken out of the state

So a state depends on its tokens and its mitigation alone, whatever chunks they were read in. A state that was made with
one mitigation goes on with the same.

Source: Chen et al. 2024 (Stuffed Mamba, arXiv 2410.07145).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from ostinato.engine.errors import RequestError
from ostinato.models.mitigations import remedies

if TYPE_CHECKING:
    from ostinato.engine.info import ModelInfo

FIELD = "state_mitigation"
CLIP_EVERY = 128  # tokens, as in the paper's code
SHORTEST = 16  # tokens between two places where chunks are cut: each costs a step


@dataclass(frozen=True, slots=True)
class Mitigation:
    """What is done to the state on top of what the model does. All of it is off by default.

    forget: factor of every decay, in (0, 1]; the paper's is 0.9999. remember: factor of what enters the state, in
    (0, 1]; the paper's is 0.75. clip_norm: largest Frobenius norm of a head's state, every `clip_every` tokens. window:
    tokens; the state is of the last `window` ones at every multiple of it, and of up to twice as many in between.

    Raises:
        RequestError: a value is out of range; `field` is `state_mitigation`.
    """

    forget: float = 1.0
    remember: float = 1.0
    clip_norm: float | None = None
    clip_every: int | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        for name in ("forget", "remember"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise RequestError(f"{FIELD}: {name} must be in (0, 1], got {getattr(self, name)!r}", FIELD)
        if self.clip_norm is not None and not 0.0 < self.clip_norm < float("inf"):
            raise RequestError(f"{FIELD}: clip_norm must be above 0 and finite, got {self.clip_norm!r}", FIELD)
        if self.clip_every is not None and self.clip_norm is None:
            raise RequestError(f"{FIELD}: clip_every needs a clip_norm", FIELD)
        for name in ("clip_every", "window"):
            value = getattr(self, name)
            if value is not None and not SHORTEST <= value < 2**31:
                raise RequestError(f"{FIELD}: {name} must be at least {SHORTEST} tokens, got {value!r}", FIELD)
        if self.clip_every == CLIP_EVERY:
            object.__setattr__(self, "clip_every", None)  # so that equal mitigations are equal

    @property
    def asked(self) -> dict[str, float | int]:
        """What is not as by default."""
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        return {each.name: given[each.name] for each in fields(self) if given[each.name] != each.default}

    @property
    def key(self) -> str:
        """All of it in one word; empty where nothing is asked for."""
        return ",".join(f"{name}={value!r}" for name, value in self.asked.items())

    @property
    def clip_beat(self) -> int:
        """Tokens between two places where norms are clipped."""
        return CLIP_EVERY if self.clip_every is None else self.clip_every

    @property
    def beats(self) -> tuple[int, ...]:
        """At whose multiples chunks end."""
        clip = () if self.clip_norm is None else (self.clip_beat,)
        return clip if self.window is None else (*clip, self.window)

    def check(self, info: ModelInfo) -> None:
        """Raises RequestError: something of it does not apply to the family, or needs memory that is not there."""
        for name in self.asked.keys() - {"clip_every"}:
            if name not in remedies(info.family):
                raise RequestError(f"{FIELD}: {name} does not apply to {info.family}", FIELD)
        if self.window is not None and not info.window_memory:
            raise RequestError(
                f"{FIELD}: this server has no memory for windows; start it with --state-window-memory", FIELD
            )


UNTOUCHED = Mitigation()


def described(mitigation: Mitigation) -> str:
    """As messages say it."""
    return mitigation.key or "no mitigation"
