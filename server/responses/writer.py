"""Writing the answer of /v1/responses, whole or as a stream of named events."""

from __future__ import annotations

import itertools
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

from pydantic import BaseModel

from ostinato.engine.events import FinishReason, TokenEvent
from ostinato.server.context import Context
from ostinato.server.errors import describe
from ostinato.server.generation import Job, new_id, run
from ostinato.server.replies import ErrorReply
from ostinato.server.responses.protocol import ResponseRequest
from ostinato.server.responses.replies import (
    ErrorEvent,
    IncompleteDetails,
    InputTokensDetails,
    ItemEvent,
    OutputMessage,
    OutputText,
    PartEvent,
    ResponseEvent,
    ResponseReply,
    ResponseUsage,
    Status,
    StreamEvent,
    TextDeltaEvent,
    TextDoneEvent,
)
from ostinato.server.sse import SseResponse


class EventResponse(SseResponse):
    """Sends events with their names. The last one says that it is: there is no `[DONE]`."""

    last_frame = b""

    def __init__(self, events: AsyncGenerator[StreamEvent, None]) -> None:
        super().__init__(events)
        self.sent = 0

    def frame(self, chunk: BaseModel) -> bytes:
        assert isinstance(chunk, StreamEvent)
        self.sent += 1
        return f"event: {chunk.type}\n".encode() + super().frame(chunk)

    def error_frame(self, error: Exception) -> bytes:
        told = ErrorReply.model_validate(describe(error)).error
        return self.frame(ErrorEvent(sequence_number=self.sent, code=told.code, message=told.message, param=told.param))


class ResponseWriter:
    """Writes the answer of one request: one message, of one text."""

    def __init__(self, context: Context, request: ResponseRequest, job: Job) -> None:
        self.context = context
        self.request = request
        self.job = job
        self.item_id = new_id("msg_")
        self.text = ""
        self.finish_reason: FinishReason | None = None
        self._numbers = itertools.count()

    async def whole(self) -> ResponseReply:
        async with aclosing(run(self.context, self.job)) as events:
            async for event in events:
                self._take(event)
        return self._reply()

    async def events(self) -> AsyncGenerator[StreamEvent, None]:
        """The first ones wait for the engine's first, so that a request that it does not accept gets no stream."""
        begun = False
        async with aclosing(run(self.context, self.job)) as events:
            async for event in events:
                if not begun:
                    for opening in self._opening():
                        yield opening
                    begun = True
                self._take(event)
                if event.text:
                    yield TextDeltaEvent(sequence_number=next(self._numbers), item_id=self.item_id, delta=event.text)
        for closing in self._closing():
            yield closing

    def _take(self, event: TokenEvent) -> None:
        self.text += event.text
        self.finish_reason = event.finish_reason

    def _opening(self) -> Iterator[StreamEvent]:
        reply, number = self._reply(), self._numbers
        yield ResponseEvent(type="response.created", sequence_number=next(number), response=reply)
        yield ResponseEvent(type="response.in_progress", sequence_number=next(number), response=reply)
        yield ItemEvent(type="response.output_item.added", sequence_number=next(number), item=self._message([]))
        yield PartEvent(
            type="response.content_part.added",
            sequence_number=next(number),
            item_id=self.item_id,
            part=OutputText(text=""),
        )

    def _closing(self) -> Iterator[StreamEvent]:
        reply, part, number = self._reply(), OutputText(text=self.text), self._numbers
        yield TextDoneEvent(sequence_number=next(number), item_id=self.item_id, text=self.text)
        yield PartEvent(
            type="response.content_part.done", sequence_number=next(number), item_id=self.item_id, part=part
        )
        yield ItemEvent(type="response.output_item.done", sequence_number=next(number), item=self._message([part]))
        yield ResponseEvent(
            type="response.completed" if reply.status == "completed" else "response.incomplete",
            sequence_number=next(number),
            response=reply,
        )

    def _status(self) -> Status:
        if self.finish_reason is None:
            return "in_progress"
        return "completed" if self.finish_reason is FinishReason.STOP else "incomplete"

    def _message(self, content: list[OutputText]) -> OutputMessage:
        return OutputMessage(id=self.item_id, status=self._status(), content=content)

    def _reply(self) -> ResponseReply:
        """The response as far as it has come."""
        request, job, status = self.request, self.job, self._status()
        ended = status != "in_progress"
        return ResponseReply(
            id=job.id,
            created_at=job.created,
            completed_at=int(time.time()) if status == "completed" else None,
            status=status,
            incomplete_details=self._incomplete() if status == "incomplete" else None,
            instructions=request.instructions,
            max_output_tokens=job.params.max_tokens,
            metadata=request.metadata,
            model=self.context.model_name,
            output=[self._message([OutputText(text=self.text)])] if ended else [],
            parallel_tool_calls=request.parallel_tool_calls,
            previous_response_id=request.previous_response_id,
            store=job.states.storing is not None,
            temperature=request.temperature,
            tool_choice=request.tool_choice,
            top_p=request.top_p,
            usage=self._usage() if ended else None,
            user=request.user,
            state=job.states.ends.get(0),
        )

    def _incomplete(self) -> IncompleteDetails:
        guarded = self.finish_reason is FinishReason.STATE_GUARD
        return IncompleteDetails(reason="state_guard" if guarded else "max_output_tokens")

    def _usage(self) -> ResponseUsage:
        usage = self.job.usage()
        details = usage.prompt_tokens_details
        return ResponseUsage(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputTokensDetails(
                cached_tokens=details.cached_tokens, cache_reason=details.cache_reason
            ),
            output_tokens=usage.completion_tokens,
            total_tokens=usage.total_tokens,
        )
