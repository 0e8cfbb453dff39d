"""What clients send. Unknown fields are refused, types are taken literally, and null means absent.

Ranges are not checked here: `SamplingParams` checks them, for every way into the engine. What the server sends is in
`ostinato.server.replies`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ostinato.server.guard_protocol import MitigationFields, StateGuard
from ostinato.server.repeat_protocol import Part, Repeat
from ostinato.server.validation import WireModel, must_be

MAX_CHOICES = 128
MAX_STOPS = 16
MAX_FORKS = 1000

TokenIds = Annotated[list[int], Field(fail_fast=True)]

Prompt = Annotated[
    str
    | Annotated[list[str], Field(fail_fast=True, min_length=1)]
    | Annotated[list[int], Field(fail_fast=True, min_length=1)]
    | Annotated[list[TokenIds], Field(fail_fast=True, min_length=1)],
    must_be("a string, a list of strings, a list of token ids or a list of lists of token ids, and not empty"),
]

Stop = Annotated[
    str | Annotated[list[str], Field(max_length=MAX_STOPS)],
    must_be(f"a string or a list of at most {MAX_STOPS} strings"),
]

LogitBias = Annotated[
    dict[Annotated[str, Field(pattern=r"^[0-9]{1,10}$")], float],
    must_be('an object from token ids, written as strings, to numbers, for example {"42": -100}'),
]


MAX_LABELS = 16
MAX_CHECKPOINTS = 64

StateId = Annotated[str, Field(pattern=r"^st_[0-9a-f]{64}$"), must_be("the id of a state: st_ and 64 hex digits")]
Label = Annotated[str, Field(min_length=1, max_length=200)]
Labels = Annotated[list[Label], Field(max_length=MAX_LABELS)]
TimeToLive = Annotated[int | float, Field(gt=0, le=1e10), must_be("a number of seconds above 0")]
Offset = Annotated[int, Field(ge=1)]


class StoreOptions(WireModel):
    """How a state is stored. ttl: seconds; without, for good."""

    ttl: TimeToLive | None = None
    labels: Labels = Field(default_factory=list)
    pinned: bool = False
    private: bool = False
    lossy: bool = False


Store = Annotated[
    bool | TimeToLive | StoreOptions,
    must_be("true, a time to live in seconds, or an object with ttl, labels, pinned, private and lossy"),
]
Checkpoints = Annotated[
    Annotated[list[Offset], Field(max_length=MAX_CHECKPOINTS)]
    | Annotated[dict[Label, Offset], Field(max_length=MAX_CHECKPOINTS)],
    must_be(f"a list of at most {MAX_CHECKPOINTS} numbers of tokens, or an object from names to numbers of tokens"),
]


class StreamOptions(WireModel):
    include_usage: bool = False


class SamplingRequest(WireModel):
    """The fields that all routes share which generate text. Defaults and ranges: docs/http-api.md."""

    model: str | None = None
    stream: bool = False
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: LogitBias = Field(default_factory=dict)
    seed: int | None = None
    stop: Stop = Field(default_factory=list)
    stop_token_ids: TokenIds = Field(default_factory=list)
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    priority: int = Field(0, ge=-(2**31), lt=2**31)
    state: StateId | None = None
    initial_state: str | None = None
    cache_prompt: bool = True
    repeat: Repeat = 1
    state_mitigation: MitigationFields | None = None
    user: str | None = None  # OpenAI: a label of the end user, without effect on the answer


class GenerationRequest(SamplingRequest):
    """The fields that both completion routes share."""

    n: int = Field(1, ge=1, le=MAX_CHOICES)
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    return_token_ids: bool = False
    store: Store = False
    state_guard: StateGuard | None = None
    state_health: bool = False


class CompletionRequest(GenerationRequest):
    """Body of POST /v1/completions."""

    prompt: Prompt | None = None  # may be left out where a state is named, or `repeat` writes it
    checkpoints: Checkpoints = Field(default_factory=list)
    best_of: int | None = None
    echo: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    add_special_tokens: bool = True


class TextPart(WireModel):
    type: Literal["text"]
    text: str


class ChatMessage(WireModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    checkpoint: bool | Label = False
    part: Part | None = None


class ResponseFormat(WireModel):
    type: Literal["text"]


class ChatRequest(GenerationRequest):
    """Body of POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(default_factory=list)
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    response_format: ResponseFormat | None = None


class CreateStateRequest(WireModel):
    """Body of POST /v1/states: reads `prompt` or `messages`, behind `state` if there is one, and keeps the state."""

    model: str | None = None
    prompt: str | TokenIds | None = None
    messages: list[ChatMessage] | None = Field(None, min_length=1)
    state: StateId | None = None
    initial_state: str | None = None
    add_special_tokens: bool = True
    checkpoints: Checkpoints = Field(default_factory=list)
    ttl: TimeToLive | None = None
    labels: Labels = Field(default_factory=list)
    pinned: bool = False
    private: bool = False
    lossy: bool = False
    priority: int = Field(0, ge=-(2**31), lt=2**31)
    cache_prompt: bool = True
    state_mitigation: MitigationFields | None = None


class UpdateStateRequest(WireModel):
    """Body of POST /v1/states/{id}: what is left out stays as it is. ttl counts from now; 0 is for good."""

    labels: Labels | None = None
    pinned: bool | None = None
    ttl: Annotated[int | float, Field(ge=0, le=1e10), must_be("a number of seconds, 0 for good")] | None = None


class ForkRequest(WireModel):
    """Body of POST /v1/states/{id}/fork: `n` children, or one for each label."""

    n: int | None = Field(None, ge=1, le=MAX_FORKS)
    labels: Annotated[list[Label], Field(max_length=MAX_FORKS)] = Field(default_factory=list)


class RewindRequest(WireModel):
    """Body of POST /v1/states/{id}/rewind: one of `back` (tokens), `tokens` (to keep) and `mark`."""

    back: int | None = Field(None, ge=1)
    tokens: int | None = Field(None, ge=1)
    mark: Label | None = None
    labels: Labels = Field(default_factory=list)
    ttl: TimeToLive | None = None


class TokenizeRequest(WireModel):
    """Body of POST /tokenize: `prompt` or `messages`."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(None, min_length=1)
    add_special_tokens: bool = True


class DetokenizeRequest(WireModel):
    """Body of POST /detokenize."""

    model: str | None = None
    tokens: TokenIds
