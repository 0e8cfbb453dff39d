"""The values that travel through the engine. No torch here: policy is tested without a model.

A request's way: `Sequence` (one stream of tokens) -> `StepPlan` (what one step reads) -> `TokenEvent` of `events.py`
(what it wrote).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ostinato.engine.events import FinishReason, Reuse
from ostinato.engine.mitigation import UNTOUCHED, Mitigation
from ostinato.engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    from ostinato.engine.guard import Guarded
    from ostinato.engine.keeping import Closing, Keep, Mark
    from ostinato.engine.state_pool import State
    from ostinato.engine.text.detokenizer import TextStream


@dataclass(frozen=True, slots=True)
class Generation:
    """How far an answer has come: what going on with it needs besides the state and the token log.

    tokens: generated so far, the last ones of the log. counts: how often each occurs among them, for the penalties.
    index: of the choice, since choices with one seed draw different numbers. held, partial: text that is complete but
    may begin a stop string, and the bytes of an unfinished character (see `TextStream`); neither was shown yet.
    """

    tokens: int = 0
    counts: Mapping[int, int] = field(default_factory=dict)
    index: int = 0
    held: str = ""
    partial: bytes = b""


NOT_BEGUN = Generation()


@dataclass(slots=True)
class Sequence:
    """One stream of tokens: a prompt, what was generated so far, and where its state lives.

    The token log is `base` tokens that nobody knows any more (of a private state), then the prompt, then the output.
    `num_read` counts the tokens of the log that the state has taken in; the state always stands behind the log by what
    is still to be read (`num_unread`).
    """

    id: str
    prompt: tuple[int, ...]
    params: SamplingParams
    seed: int  # the request's, or drawn at submission
    index: int = 0  # among the n choices of one request
    priority: int = 0  # lower is served first
    text: TextStream | None = None  # None: token ids only
    output: list[int] = field(default_factory=list)
    output_counts: dict[int, int] = field(default_factory=dict)
    num_read: int = 0
    slot: int = -1
    finish_reason: FinishReason | None = None
    prompt_ids: frozenset[int] = frozenset()  # only with a repetition penalty, which needs them in every step
    base: int = 0
    region: int = 0  # first tokens of the log that were or will be read at once, see `StateSpec.encoder_length`
    origin: State | None = None  # what its slot starts from: a stored, cached, forked or parked state
    initial: State | None = None  # its memory before the first token, if that is not empty
    initial_digest: str | None = None  # of that
    began: int = 0  # tokens that it did not have to read when it began
    reuse: Reuse = Reuse.OFF
    resumed: Generation = NOT_BEGUN  # the answer that this one goes on with
    scope: str | None = None  # whose prefix cache it may use and fill; None: nobody's
    checkpoints: frozenset[int] = frozenset()  # lengths of the log at which the caller wants the state to be kept
    stops: set[int] = field(default_factory=set)  # all lengths at which it is to be kept
    keep: Keep | None = None  # what the request wants to have stored
    mark: Mark | None = None  # where a stop string may have begun
    closing: Closing | None = None  # it has its answer, and reads the rest of the log for the state to be stored
    followers: list[Sequence] = field(default_factory=list)  # choices that wait until this one has read the prompt
    held_back: bool = False  # is such a follower
    park: Keep | None = None  # how it is stored where the server goes down before its end; None: it is not
    arrived: float = field(default_factory=time.monotonic)
    waited: float | None = None  # seconds until it had its first slot; None: it has had none
    mitigation: Mitigation = UNTOUCHED  # what is done to its state beyond what the model does
    guard: Guarded | None = None  # who looks at its state
    beats: tuple[int, ...] = ()  # at multiples of these lengths of the log chunks end

    def __post_init__(self) -> None:
        if self.params.repetition_penalty != 1.0:
            self.prompt_ids = frozenset(self.prompt)

    @property
    def prompt_end(self) -> int:
        """Length of the log with the prompt and without the output."""
        return self.base + len(self.prompt)

    @property
    def num_tokens(self) -> int:
        return self.base + len(self.closing.log) if self.closing else self.prompt_end + len(self.output)

    @property
    def num_unread(self) -> int:
        """Tokens of the log that the state has not read."""
        return self.num_tokens - self.num_read

    @property
    def in_prefill(self) -> bool:
        """Whether it only reads: its prompt, or the rest of a log that is complete."""
        return self.closing is not None or self.num_read < self.prompt_end

    @property
    def reads_region(self) -> bool:
        """Whether its next chunk is its encoder region, with which it begins."""
        return self.num_read < self.region

    @property
    def num_generated(self) -> int:
        """Tokens of the answer, with those of the answer that it goes on with."""
        return self.resumed.tokens + len(self.output)

    def unread_tokens(self, count: int) -> list[int]:
        """The next `count` tokens of the log that the state has not read."""
        start, stop = self.num_read - self.base, self.num_read - self.base + count
        if self.closing is not None:
            return list(self.closing.log[start:stop])
        cut = len(self.prompt)
        return [*self.prompt[start:stop], *self.output[max(0, start - cut) : max(0, stop - cut)]]

    @property
    def allows_stop(self) -> bool:
        """Whether the tokens generated so far are enough to stop after the next one."""
        return len(self.output) + 1 > self.params.min_tokens

    def append(self, token_id: int) -> None:
        """Takes a generated token into the log."""
        self.output.append(token_id)
        self.output_counts[token_id] = self.output_counts.get(token_id, 0) + 1

    def next_stop(self) -> int:
        """How far the next chunk may read: to the end of the log, or to where something is done with the state before.

        To the end of the encoder region it has to.
        """
        if self.reads_region:
            return self.region
        stops = [stop for stop in self.stops if stop > self.num_read]
        beats = [(self.num_read // beat + 1) * beat for beat in self.beats]
        return min([*stops, *beats, self.num_tokens])


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next `length` unread tokens of one sequence, read in one step.

    A sequence whose origin has read the whole log has nothing to read: its first chunk is empty, and the logits that
    came with the origin stand for those of the last token.

    `samples`: the chunk ends the token log, so its last logits choose the next token.
    `scores_prompt`: log-probabilities are wanted for the prompt tokens that its logits predict.
    `keeps`: the state is to be kept as it is at the chunk's end, with its last logits. `looks`: it is looked at there.
    """

    sequence: Sequence
    length: int
    samples: bool
    scores_prompt: bool
    keeps: bool
    looks: bool = False

    @classmethod
    def of(cls, sequence: Sequence, length: int) -> Chunk:
        """The next `length` tokens of a sequence, as it stands now."""
        params, end = sequence.params, sequence.num_read + length
        ends_log = length == sequence.num_unread
        return cls(
            sequence,
            length,
            samples=ends_log and sequence.closing is None and params.max_tokens > 0,
            scores_prompt=sequence.closing is None and sequence.in_prefill and params.prompt_logprobs is not None,
            keeps=end in sequence.stops or (ends_log and sequence.closing is not None),
            looks=sequence.guard is not None and sequence.guard.looks_at(end, sequence.prompt_end),
        )


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one step reads: the chunks, decode first. Empty when there is nothing to do."""

    chunks: tuple[Chunk, ...]
