"""What a step found and what it did, one value for each sequence in it. No torch here."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ostinato.engine.guard import StateHealth
    from ostinato.engine.snapshots import Snapshot


class FinishReason(enum.StrEnum):
    """Why a sequence ended. `STOP` and `LENGTH` are OpenAI's; others end a stream early, `PARKED` with a snapshot."""

    STOP = "stop"
    LENGTH = "length"
    PARKED = "parked"
    STATE_GUARD = "state_guard"
    ABORTED = "aborted"
    ERROR = "error"


class Fault(enum.StrEnum):
    """What a sequence with `FinishReason.ERROR` died of: an exception, numbers that are not finite, or nobody's ear."""

    STEP = "step"
    LOGITS = "logits"
    STATE = "state"
    SLOW_READER = "slow_reader"


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probability of one token, and the `top` most likely ones as (id, logprob), best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class Reuse(enum.StrEnum):
    """Why a sequence read its prompt from where it did, as `usage` tells it."""

    STATE = "state"  # it began from a state that the request named
    FORK = "fork"  # another choice of the same request had read it
    HIT = "hit"  # the prefix cache held a state of all of it or of a part
    MISS = "miss"  # no such state there
    REGION = "encoder_region"  # the prompt is shorter than the model's encoder region: nothing shorter has its state
    OFF = "off"  # there is no prefix cache, or the request asked for none
    SCORED = "prompt_logprobs"  # every token has to be read to be scored


@dataclass(frozen=True, slots=True)
class Sampled:
    """What the sampler found for one chunk: the next token if the chunk samples, scores if it scores the prompt."""

    token_id: int | None = None
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()
    error: str | None = None  # the logits of this sequence cannot be used
    fault: Fault = Fault.STEP  # with an error


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """What one step did for one sequence. The last one of a sequence, and only that, has a `finish_reason`.

    `text` is what became printable with this token: it may be empty (half a character, or the possible beginning of a
    stop string is held back) and may hold text of earlier tokens. `prompt_logprobs` arrives in pieces while the prompt
    is read, in order; its first entry of a prompt is None, since nothing predicts the first token of a text.
    """

    sequence_id: str
    index: int = 0
    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None  # the stop string or token id that ended it
    error: str | None = None  # with FinishReason.ERROR, and
    fault: Fault | None = None  # what kind of error it is
    snapshots: tuple[Snapshot, ...] = ()  # that were asked for; the one at the end comes last, with `finish_reason`
    reused: int = 0  # with `finish_reason`: tokens of the log that did not have to be read, and why not more
    reuse: Reuse = Reuse.OFF
    waited: float = 0.0  # with `finish_reason`: seconds until it had its first slot, or its end if it never had one
    health: StateHealth | None = None  # with `finish_reason`, where the request wants to know

    @property
    def says_something(self) -> bool:
        """Whether there is anything in it to deliver."""
        return bool(self.token_ids or self.prompt_logprobs or self.snapshots or self.finish_reason)
