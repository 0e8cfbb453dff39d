"""What POST /v1/responses sends: the response, and the events of its stream."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from ostinato.engine.events import Reuse
from ostinato.server.replies import Optional, StateReply

Status = Literal["in_progress", "completed", "incomplete"]


class OutputText(BaseModel):
    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[str] = Field(default_factory=list)  # always empty
    logprobs: list[float] = Field(default_factory=list)  # always empty


class OutputMessage(BaseModel):
    id: str
    type: Literal["message"] = "message"
    status: Status
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]


class InputTokensDetails(BaseModel):
    """cached_tokens: that did not have to be read again. cache_reason: how the prompt began, see `Reuse`.

    cache_write_tokens: OpenAI's count of tokens that are charged for being kept; nothing is charged for here.
    """

    cached_tokens: int
    cache_reason: Reuse
    cache_write_tokens: Literal[0] = 0


class OutputTokensDetails(BaseModel):
    reasoning_tokens: Literal[0] = 0  # nothing is generated that is not shown


class ResponseUsage(BaseModel):
    """Tokens of one response. input_tokens: all that the answer stands on, those of a state included."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails = Field(default_factory=OutputTokensDetails)
    total_tokens: int


class IncompleteDetails(BaseModel):
    reason: Literal["max_output_tokens", "state_guard"] = "max_output_tokens"


class TextFormat(BaseModel):
    type: Literal["text"] = "text"


class TextSettings(BaseModel):
    format: TextFormat = Field(default_factory=TextFormat)


class ResponseReply(BaseModel):
    """Answer of /v1/responses, and what the first and last events of its stream carry. Times: seconds since 1970.

    `store` and `state` are not OpenAI's. Fields that always have the same value are, and clients expect them.
    """

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Status
    background: Literal[False] = False
    error: None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int
    metadata: dict[str, str]
    model: str
    output: list[OutputMessage]
    parallel_tool_calls: bool
    previous_response_id: str | None
    store: bool
    temperature: float
    text: TextSettings = Field(default_factory=TextSettings)
    tool_choice: Literal["auto", "none"]
    tools: list[str] = Field(default_factory=list)  # always empty
    top_p: float
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None
    state: Optional[StateReply] = None


class DeletedResponse(BaseModel):
    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


class StreamEvent(BaseModel):
    """Base of all events. sequence_number: counts from 0."""

    type: str
    sequence_number: int


class ResponseEvent(StreamEvent):
    """The response as it begins or ends."""

    type: Literal["response.created", "response.in_progress", "response.completed", "response.incomplete"]
    response: ResponseReply


class ItemEvent(StreamEvent):
    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: int = 0
    item: OutputMessage


class PartEvent(StreamEvent):
    type: Literal["response.content_part.added", "response.content_part.done"]
    item_id: str
    output_index: int = 0
    content_index: int = 0
    part: OutputText


class TextDeltaEvent(StreamEvent):
    type: Literal["response.output_text.delta"] = "response.output_text.delta"
    item_id: str
    output_index: int = 0
    content_index: int = 0
    delta: str
    logprobs: list[float] = Field(default_factory=list)  # always empty


class TextDoneEvent(StreamEvent):
    type: Literal["response.output_text.done"] = "response.output_text.done"
    item_id: str
    output_index: int = 0
    content_index: int = 0
    text: str
    logprobs: list[float] = Field(default_factory=list)  # always empty


class ErrorEvent(StreamEvent):
    """The last event of a stream that failed: the fields of the error object, without one around them."""

    type: Literal["error"] = "error"
    code: str
    message: str
    param: str | None
