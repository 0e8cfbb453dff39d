"""What clients send to POST /v1/responses.

Fields of OpenAI's that would change the answer are refused unless they have the value that changes nothing: an empty
list of tools, say. Clients fill such values in.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

from pydantic import Field

from ostinato.server.protocol import ChatMessage, ResponseFormat, SamplingRequest, Store
from ostinato.server.repeat_protocol import Part
from ostinato.server.validation import WireModel, must_be

MAX_METADATA = 16

Metadata = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=MAX_METADATA),
    must_be(f"an object of at most {MAX_METADATA} strings: names of 1 to 64 characters, values of at most 512"),
]
Nothing = Annotated[list[Any], Field(max_length=0)]  # Any: there is nothing in it


class ContentPart(WireModel):
    """A text. Parts of an answer come back with annotations and logprobs, which are empty here."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: Annotated[Nothing, must_be("an empty list")] = Field(default_factory=list)
    logprobs: Annotated[Nothing, must_be("an empty list")] = Field(default_factory=list)


class MessageItem(WireModel):
    """A message. Those of an answer come back with their id and status, which say nothing to the model."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[ContentPart]
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    part: Part | None = None

    def message(self) -> ChatMessage:
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return ChatMessage(role=self.role, content=content, part=self.part)


class TextConfig(WireModel):
    format: ResponseFormat | None = None


class ResponseRequest(SamplingRequest):
    """Body of POST /v1/responses. store: None for true where the server keeps states."""

    input: str | list[MessageItem] | None = None  # may be left out where there is something to go on from
    instructions: str | None = None
    previous_response_id: str | None = None
    store: Store | None = None
    max_output_tokens: int | None = None
    metadata: Metadata = Field(default_factory=dict)
    text: TextConfig | None = None
    truncation: Annotated[Literal["disabled"], must_be('"disabled": nothing is ever left out of a state')] = "disabled"
    tools: Annotated[Nothing, must_be("an empty list: this server calls no tools")] = Field(default_factory=list)
    tool_choice: Annotated[Literal["auto", "none"], must_be('"auto" or "none": there are no tools')] = "auto"
    parallel_tool_calls: bool = True  # of the tools that there are not
    include: Annotated[Nothing, must_be("an empty list: there is nothing to add")] = Field(default_factory=list)
    background: Annotated[Literal[False], must_be("false: answers are given at once or streamed")] = False

    def messages(self) -> list[ChatMessage]:
        """What is to be read: the instructions before the input."""
        if isinstance(self.input, str):
            read = [ChatMessage(role="user", content=self.input)]
        else:
            read = [item.message() for item in self.input or ()]
        if self.instructions is not None:
            read.insert(0, ChatMessage(role="system", content=self.instructions))
        return read


def state_id_of(response_id: str) -> str:
    """The id of the state that a response is stored as."""
    return f"st_{hashlib.sha256(response_id.encode()).hexdigest()}"
