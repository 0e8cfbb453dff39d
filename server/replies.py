"""What the server sends. Extensions of the OpenAI shapes are left out of an answer that has nothing for them."""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, Field

from ostinato.engine.events import Reuse
from ostinato.server.guard_protocol import StateHealthReply

T = TypeVar("T")


def _is_none(value: object) -> bool:
    return value is None


Optional = Annotated[T | None, Field(exclude_if=_is_none)]
FinishReason = Literal["stop", "length"]


class CachedTokens(BaseModel):
    """cached_tokens: that did not have to be read again. cache_reason: how the (first) prompt began, see `Reuse`."""

    cached_tokens: int = 0
    cache_reason: Reuse = Reuse.OFF


class Usage(BaseModel):
    """Tokens of one request. prompt_tokens: all that the answer stands on, those of a state included.

    Each prompt counts once, however many choices continue it.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens = Field(default_factory=CachedTokens)


class StateReply(BaseModel):
    """A stored state, as an answer names it: `state` is the one at its end, `checkpoints` are those on the way.

    bytes: of its file. pending: text that is held back and not shown yet. mitigation: with which it was made.
    """

    id: str
    parent: str | None
    tokens: int
    bytes: int
    expires: float | None = None
    pending: Optional[str] = None
    mark: Optional[str] = None
    mitigation: Optional[dict[str, float | int]] = None


class LegacyLogprobs(BaseModel):
    """Parallel lists, one entry per token. `text_offset` counts characters of the choice's text."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One choice, or in a stream what one step added to it."""

    index: int
    text: str
    logprobs: LegacyLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: Optional[str | int] = None
    token_ids: Optional[list[int]] = None
    prompt_token_ids: Optional[list[int]] = None
    prompt_logprobs: Optional[LegacyLogprobs] = None
    state: Optional[StateReply] = None
    checkpoints: Optional[list[StateReply]] = None
    state_health: Optional[StateHealthReply] = None


class Completion(BaseModel):
    """Answer of /v1/completions, and each event of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int  # seconds since 1970
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Optional[Usage] = None
    state: Optional[StateReply] = None
    checkpoints: Optional[list[StateReply]] = None


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class ChatTokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    content: list[ChatTokenLogprob]
    refusal: None = None


class AssistantMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatDelta(BaseModel):
    role: Optional[Literal["assistant"]] = None
    content: Optional[str] = None


class ChatExtras(BaseModel):
    """What a chat choice and a piece of one have in common."""

    index: int
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None
    stop_reason: Optional[str | int] = None
    token_ids: Optional[list[int]] = None
    prompt_token_ids: Optional[list[int]] = None
    state: Optional[StateReply] = None
    checkpoints: Optional[list[StateReply]] = None
    state_health: Optional[StateHealthReply] = None


class ChatChoice(ChatExtras):
    message: AssistantMessage


class ChatChunkChoice(ChatExtras):
    delta: ChatDelta


class ChatCompletion(BaseModel):
    """Answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    state: Optional[StateReply] = None
    checkpoints: Optional[list[StateReply]] = None


class ChatCompletionChunk(BaseModel):
    """One event of the stream of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Optional[Usage] = None
    state: Optional[StateReply] = None
    checkpoints: Optional[list[StateReply]] = None


class ModelCard(BaseModel):
    """The served model, with what capacity planning needs. Sizes in bytes."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "ostinato"
    architecture: str
    family: str
    vocab_size: int
    dtype: str
    state_dtype: str
    bytes_per_state: int
    slots: int
    weight_bytes: int
    batch_invariant: bool
    has_tokenizer: bool
    attention_window: Optional[int] = None
    encoder_length: Optional[int] = None
    initial_states: list[str]


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class TokenizeReply(BaseModel):
    tokens: list[int]
    count: int


class DetokenizeReply(BaseModel):
    prompt: str


class Status(BaseModel):
    status: Literal["ok", "ready"]


class ErrorObject(BaseModel):
    message: str
    type: str
    param: str | None  # the request field at fault
    code: str


class ErrorReply(BaseModel):
    """Every answer that is not a success, and the last event of a stream that failed."""

    error: ErrorObject
