"""What clients send. Unknown fields are refused, types are taken literally, and null means absent.

Ranges are not checked here: `SamplingParams` checks them, for every way into the engine. What the server sends is in
`ostinato.server.replies`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ostinato.server.validation import must_be

MAX_CHOICES = 128
MAX_STOPS = 16

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


class WireModel(BaseModel):
    """Base of every request and of every object inside one."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        """Clients of the OpenAI API send null for what the user left unset."""
        if isinstance(value, dict):
            return {key: item for key, item in value.items() if item is not None}
        return value


class StreamOptions(WireModel):
    include_usage: bool = False


class GenerationRequest(WireModel):
    """The fields that both completion routes share. Defaults and ranges: docs/http-api.md."""

    model: str | None = None
    n: int = Field(1, ge=1, le=MAX_CHOICES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
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
    return_token_ids: bool = False
    priority: int = Field(0, ge=-(2**31), lt=2**31)
    user: str | None = None  # OpenAI: a label of the end user, without effect on the answer


class CompletionRequest(GenerationRequest):
    """Body of POST /v1/completions."""

    prompt: Prompt
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


class ResponseFormat(WireModel):
    type: Literal["text"]


class ChatRequest(GenerationRequest):
    """Body of POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    response_format: ResponseFormat | None = None


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
