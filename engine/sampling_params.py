"""What a request says about choosing tokens and stopping, checked when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ostinato.engine.errors import RequestError

MAX_TOP_LOGPROBS = 20
MAX_SEED = 2**63 - 1


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
            if value is not None and not _is_integer(value):
                raise RequestError(f"{name} must be an integer, got {value!r}", name)
        for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
            _check_number(name, getattr(self, name))
        for name in ("include_stop", "ignore_eos"):
            if not isinstance(value := getattr(self, name), bool):
                raise RequestError(f"{name} must be true or false, got {value!r}", name)
        if isinstance(self.stop, str) or not all(isinstance(text, str) for text in self.stop):
            raise RequestError(f"stop must be a tuple of strings, got {self.stop!r}", "stop")
        for name in ("stop_token_ids", "logit_bias"):
            if not all(map(_is_integer, getattr(self, name))):
                raise RequestError(f"{name}: token ids must be integers", name)
        for bias in self.logit_bias.values():
            _check_number("logit_bias", bias)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_number(name: str, value: object) -> None:
    if not (_is_integer(value) or isinstance(value, float)):
        raise RequestError(f"{name} must be a number, got {value!r}", name)


def _check_range(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    """NaN fails every comparison, so it is refused too."""
    if not (low < value <= high if open_low else low <= value <= high):
        low, high = (int(bound) if bound == int(bound) else bound for bound in (low, high))
        bounds = f"{'(' if open_low else '['}{low}, {high}]"
        raise RequestError(f"{name} must be in {bounds}, got {value!r}", name)
