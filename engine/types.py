"""The values that travel through the engine. No torch here: policy is tested without a model.

A request's way: `Sequence` (one stream of tokens) -> `StepPlan` (what one step reads) -> `TokenEvent` (what it wrote).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ostinato.engine.errors import RequestError

if TYPE_CHECKING:
    from ostinato.engine.detokenizer import TextStream

MAX_TOP_LOGPROBS = 20
MAX_SEED = 2**63 - 1


class FinishReason(enum.StrEnum):
    """Why a sequence ended. `STOP` and `LENGTH` are OpenAI's; the other two end a stream early."""

    STOP = "stop"
    LENGTH = "length"
    ABORTED = "aborted"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen and when to stop. Checked on construction.

    Order of application: penalties and bias on the raw logits, then temperature, then top_k, top_p and min_p, then
    one draw. Reported log-probabilities are those of the raw logits, before any of it.

    Raises:
        RequestError: a value is out of range; `field` names it.
    """

    temperature: float = 1.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # over prompt and output
    presence_penalty: float = 0.0  # over output, once per token seen
    frequency_penalty: float = 0.0  # over output, times its count
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int = 16
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    include_stop: bool = False  # keep the stop string in the text
    ignore_eos: bool = False
    logprobs: int | None = None  # number of alternatives per output token; None: none at all
    prompt_logprobs: int | None = None  # likewise for the prompt

    def __post_init__(self) -> None:
        self._check_types()
        _check_range("temperature", self.temperature, 0.0, 100.0)
        _check_range("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _check_range("min_p", self.min_p, 0.0, 1.0)
        _check_range("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        _check_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check_range("top_k", self.top_k, 0, 2**31)
        _check_range("max_tokens", self.max_tokens, 0, 2**31)
        _check_range("min_tokens", self.min_tokens, 0, self.max_tokens)
        for bias in self.logit_bias.values():
            _check_range("logit_bias", bias, -100.0, 100.0)
        for name in ("logprobs", "prompt_logprobs"):
            count = getattr(self, name)
            if count is not None:
                _check_range(name, count, 0, MAX_TOP_LOGPROBS)
        if self.seed is not None:
            _check_range("seed", self.seed, -MAX_SEED - 1, MAX_SEED)
        if any(not text for text in self.stop):
            raise RequestError("stop strings must not be empty", "stop")

    def _check_types(self) -> None:
        for name in ("top_k", "max_tokens", "min_tokens", "seed", "logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise RequestError(f"{name} must be an integer, got {value!r}", name)
        if isinstance(self.stop, str):
            raise RequestError(f"stop must be a tuple of strings, got the string {self.stop!r}", "stop")


def _check_range(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    """NaN fails every comparison, so it is refused too."""
    if not (low < value <= high if open_low else low <= value <= high):
        low, high = (int(bound) if bound == int(bound) else bound for bound in (low, high))
        bounds = f"{'(' if open_low else '['}{low}, {high}]"
        raise RequestError(f"{name} must be in {bounds}, got {value!r}", name)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probability of one token, and the `top` most likely ones as (id, logprob), best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class Sequence:
    """One stream of tokens: a prompt, what was generated so far, and where its state lives.

    `num_read` counts the tokens that the state has taken in; the state always stands behind the token log by what is
    still to be read (`num_unread`).
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

    def __post_init__(self) -> None:
        if self.params.repetition_penalty != 1.0:
            self.prompt_ids = frozenset(self.prompt)

    @property
    def num_tokens(self) -> int:
        return len(self.prompt) + len(self.output)

    @property
    def num_unread(self) -> int:
        """Tokens of the log that the state has not read."""
        return self.num_tokens - self.num_read

    @property
    def in_prefill(self) -> bool:
        """Whether some of the prompt is still to be read."""
        return self.num_read < len(self.prompt)

    def unread_tokens(self, count: int) -> list[int]:
        """The next `count` tokens of the log that the state has not read."""
        start, stop = self.num_read, self.num_read + count
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


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next `length` unread tokens of one sequence, read in one step.

    `samples`: the chunk ends the token log, so its last logits choose the next token.
    `scores_prompt`: log-probabilities are wanted for the prompt tokens that its logits predict.
    """

    sequence: Sequence
    length: int
    samples: bool
    scores_prompt: bool

    @classmethod
    def of(cls, sequence: Sequence, length: int) -> Chunk:
        """The next `length` tokens of a sequence, as it stands now."""
        params = sequence.params
        return cls(
            sequence,
            length,
            samples=length == sequence.num_unread and params.max_tokens > 0,
            scores_prompt=sequence.in_prefill and params.prompt_logprobs is not None,
        )


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one step reads: the chunks, decode first. Empty when there is nothing to do."""

    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True)
class Sampled:
    """What the sampler found for one chunk: the next token if the chunk samples, scores if it scores the prompt."""

    token_id: int | None = None
    logprobs: TokenLogprobs | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()
    error: str | None = None  # the logits of this sequence cannot be used


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """What one step did for one sequence. The last one of a sequence, and only that, has a `finish_reason`.

    `text` is what became printable with this token: it may be empty (half a character, or the possible beginning of a
    stop string is held back) and may hold text of earlier tokens. `prompt_logprobs` arrives in pieces while the prompt
    is read, in order; its first entry of a prompt is None, since nothing predicts the first token.
    """

    sequence_id: str
    index: int = 0
    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs | None, ...] = ()
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None  # the stop string or token id that ended it
    error: str | None = None  # with FinishReason.ERROR
