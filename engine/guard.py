"""The state guard: looks at the norms of states, and ends an answer whose state has come apart.

Two eyes. The *watch* is always on, for the metrics: each slot in use has its turn every `WATCH_STEPS` steps. A look
reads the state once, where as many steps have read and written it each time: less than a hundredth of what they move.
A *guard* belongs to one sequence: it looks at multiples of `every` tokens of the log, where chunks end, so what it
finds does not depend on how a text was split or who shared the batch.
"""

from __future__ import annotations

import enum
import logging
import math
from collections import Counter
from collections.abc import Sequence as Items
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from ostinato.engine.errors import RequestError

if TYPE_CHECKING:
    from torch import Tensor

    from ostinato.engine.state_pool import State
    from ostinato.engine.types import Sequence

logger = logging.getLogger(__name__)

FIELD = "state_guard"
LOOK_EVERY = 256  # tokens
WATCH_STEPS = 64
SHORTEST = 16  # tokens between two looks


class Reaction(enum.StrEnum):
    """What is done when a state's norm is above the limit or not finite.

    REPORT: nothing but saying so. STOP: the answer ends there; that state is neither stored nor cached. RESTORE: as
    STOP, and where the answer's state was to be stored, the one at the last good look is, with its own token log.
    """

    REPORT = "report"
    STOP = "stop"
    RESTORE = "restore"


@dataclass(frozen=True, slots=True)
class GuardOptions:
    """How one sequence is guarded. norm_limit: None reacts to states that are not finite only.

    every: tokens between two looks. Raises RequestError: a value is out of range; `field` is `state_guard`.
    """

    reaction: Reaction = Reaction.REPORT
    norm_limit: float | None = None
    every: int = LOOK_EVERY

    def __post_init__(self) -> None:
        if self.norm_limit is not None and not 0.0 < self.norm_limit < math.inf:
            raise RequestError(f"{FIELD}: norm_limit must be above 0 and finite, got {self.norm_limit!r}", FIELD)
        if not SHORTEST <= self.every < 2**31:
            raise RequestError(f"{FIELD}: every must be at least {SHORTEST} tokens, got {self.every!r}", FIELD)

    @property
    def acts(self) -> bool:
        """Whether a sequence that asks for nothing is looked at."""
        return self.reaction is not Reaction.REPORT or self.norm_limit is not None


REPORTING = GuardOptions()


@dataclass(frozen=True, slots=True)
class Norms:
    """Frobenius norms of one state, over the heads of all layers. decay: the mean factor by which a token's decays
    shrank the state lately, where they are added up.
    """

    largest: float
    mean: float
    decay: float | None = None

    @property
    def finite(self) -> bool:
        """NaN or an infinity anywhere makes both so."""
        return math.isfinite(self.mean)


@dataclass(frozen=True, slots=True)
class StateHealth:
    """What the guard found of one sequence.

    tokens: read when it last looked. norm_growth: the largest norm over that at the prompt's end; None where one of
    them is unknown, zero or not finite. exceeded_at: tokens read at the first look that found too much.
    """

    tokens: int
    norms: Norms
    norm_growth: float | None = None
    exceeded_at: int | None = None


@dataclass(frozen=True, slots=True)
class Good:
    """The state at a look that found nothing. outputs: tokens of the answer that it has read; held, partial: what its
    text held back there, see `Generation`.
    """

    state: State
    outputs: int
    held: str
    partial: bytes


@dataclass(slots=True)
class Guarded:
    """How one sequence is guarded, and what was found. reports: the request wants to be told.

    prompt_norm: the largest norm at the prompt's end. good: kept where the reaction is to restore it.
    """

    options: GuardOptions
    reports: bool = False
    health: StateHealth | None = None
    prompt_norm: float | None = None
    good: Good | None = None

    def looks_at(self, tokens: int, prompt_end: int) -> bool:
        """Whether the state is looked at when it has read so many tokens."""
        return tokens % self.options.every == 0 or tokens == prompt_end


class Eye(Protocol):
    """The part of a runner that looks at states and copies them."""

    def norms(self, slot: int) -> Norms: ...

    def save(self, slot: int, num_read: int, logits: Tensor | None = None) -> State: ...


@dataclass(slots=True)
class GuardStats:
    """norm, mean_norm: over the slots in use, as the watch has seen them last, of states that are finite.

    Counts since the start: looks at one state; those that found numbers that are not finite; sequences that exceeded
    the limit, by the reaction.
    """

    norm: float = 0.0
    mean_norm: float = 0.0
    looks: int = 0
    not_finite: int = 0
    exceeded: Counter[str] = field(default_factory=Counter)


class Guard:
    """Both eyes. Belongs to the engine's thread; `stats` may be read by any."""

    def __init__(self, eye: Eye) -> None:
        self.stats = GuardStats()
        self._eye = eye
        self._steps = 0
        self._running: dict[int, Norms] = {}  # by slot, what the watch has seen last

    def watch(self, slots: Items[int]) -> None:
        """Called after every step, with the slots that it has advanced."""
        self._steps += 1
        due = [slot for slot in slots if (self._steps + slot) % WATCH_STEPS == 0]
        if not due:
            return
        self._running |= {slot: self._norms(slot) for slot in due}
        self._running = {slot: norms for slot, norms in self._running.items() if slot in slots}
        finite = [norms for norms in self._running.values() if norms.finite]
        self.stats.norm = max((norms.largest for norms in finite), default=0.0)
        self.stats.mean_norm = sum(norms.mean for norms in finite) / max(1, len(finite))

    def ends(self, sequence: Sequence, row: Tensor | None) -> bool:
        """Looks at a state that has just been advanced: whether its answer is to end. row: the logits there."""
        guarded = sequence.guard
        assert guarded is not None  # nobody else's state is looked at
        options, health = guarded.options, self._look(sequence, guarded)
        if not exceeds(health.norms, options):
            if options.reaction is Reaction.RESTORE and sequence.keep is not None and sequence.closing is None:
                guarded.good = self._good(sequence, row)
            return False
        if health.exceeded_at is None:
            guarded.health = replace(health, exceeded_at=sequence.num_read)
            self.stats.exceeded[options.reaction] += 1
            logger.warning("the state of %s has a norm of %g: %s", sequence.id, health.norms.largest, options.reaction)
        return options.reaction is not Reaction.REPORT

    def last_look(self, sequence: Sequence) -> StateHealth | None:
        """What is told of a sequence that ends, if anything is to be told and it has ever had a slot."""
        guarded = sequence.guard
        if guarded is None or not guarded.reports:
            return None
        if sequence.slot >= 0 and (guarded.health is None or guarded.health.tokens != sequence.num_read):
            self._look(sequence, guarded)
        return guarded.health

    def _look(self, sequence: Sequence, guarded: Guarded) -> StateHealth:
        norms, before = self._norms(sequence.slot), guarded.health
        if sequence.num_read == sequence.prompt_end:
            guarded.prompt_norm = norms.largest
        start = guarded.prompt_norm
        grown = norms.largest / start if start and math.isfinite(start) and norms.finite else None
        exceeded_at = None if before is None else before.exceeded_at
        guarded.health = StateHealth(sequence.num_read, norms, grown, exceeded_at)
        return guarded.health

    def _good(self, sequence: Sequence, row: Tensor | None) -> Good:
        held, partial = ("", b"") if sequence.text is None else sequence.text.pending
        state = self._eye.save(sequence.slot, sequence.num_read, row).on_host()
        return Good(state, len(sequence.output), held, partial)

    def _norms(self, slot: int) -> Norms:
        norms = self._eye.norms(slot)
        self.stats.looks += 1
        self.stats.not_finite += not norms.finite
        return norms


def exceeds(norms: Norms, options: GuardOptions) -> bool:
    """Whether a guard with these options reacts."""
    return not norms.finite or (options.norm_limit is not None and norms.largest > options.norm_limit)
