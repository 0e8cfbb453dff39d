"""POST /v1/chat/completions: a conversation in, the assistant's next turn out."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from fastapi import APIRouter, Request
from fastapi.responses import Response

from ostinato.engine.events import TokenEvent
from ostinato.server.api_schema import BODY, GENERATION, answers, refusals
from ostinato.server.context import Context
from ostinato.server.generation import Job, collect, join_ids, new_id, run, stop_reason, wire_reason
from ostinato.server.guard_protocol import guard_of, health_reply
from ostinato.server.logprobs import TokenNames, chat_logprobs
from ostinato.server.params import chat_params
from ostinato.server.prompts import chat_prompt
from ostinato.server.protocol import ChatRequest
from ostinato.server.replies import (
    AssistantMessage,
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatDelta,
    ChatLogprobs,
    Usage,
)
from ostinato.server.sse import SseResponse, until_disconnect
from ostinato.server.states.job_states import job_states, storing_of
from ostinato.server.validation import StrictJsonRoute


def chat_router(context: Context) -> APIRouter:
    router = APIRouter(route_class=StrictJsonRoute, responses=refusals(*BODY, *GENERATION))

    @router.post(
        "/v1/chat/completions",
        response_model=None,
        responses=answers(ChatCompletion, "each event a `chat.completion.chunk`"),
    )
    async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
        started = time.perf_counter()
        context.check_model(body.model)
        params = chat_params(context, body)
        states = await job_states(
            context,
            request,
            state=body.state,
            initial=body.initial_state,
            storing=storing_of(body.store),
            caches=body.cache_prompt,
            mitigation=body.state_mitigation,
            guard=guard_of(body.state_guard),
            health=body.state_health,
            open_turn=True,
        )
        prompt = await chat_prompt(context, body.messages, states, body.repeat)
        job = Job(new_id("chatcmpl-"), [prompt], params, body.n, body.priority, started, states)
        writer = ChatWriter(context, body, job)
        if body.stream:
            return SseResponse(writer.chunks())
        reply = await until_disconnect(request.receive, writer.whole())
        return Response(reply.model_dump_json(), media_type="application/json")

    return router


class ChatWriter:
    """Writes the answer of one request, at once or as a stream: both are made of the same pieces."""

    def __init__(self, context: Context, request: ChatRequest, job: Job) -> None:
        self.context = context
        self.request = request
        self.job = job
        self.names = TokenNames(context.service.tokenizer)
        self.begun: set[int] = set()

    async def chunks(self) -> AsyncGenerator[ChatCompletionChunk, None]:
        async with aclosing(run(self.context, self.job)) as events:
            async for event in events:
                piece = self.piece(event)
                if _says_something(piece):
                    yield self._chunk([piece], ended=event.finish_reason is not None)
        options = self.request.stream_options
        if options is not None and options.include_usage:
            yield self._chunk([], self.job.usage(), ended=True)

    async def whole(self) -> ChatCompletion:
        pieces = await collect(self.context, self.job, self.piece)
        return ChatCompletion(
            id=self.job.id,
            created=self.job.created,
            model=self.context.model_name,
            system_fingerprint=self.context.fingerprint,
            choices=[_join(of_choice) for of_choice in pieces],
            usage=self.job.usage(),
            **(self.job.states.reply(0) if self.job.choices == 1 else {}),
        )

    def piece(self, event: TokenEvent) -> ChatChunkChoice:
        """What one event adds to its choice. The first piece of a choice names the role."""
        first = event.index not in self.begun
        self.begun.add(event.index)
        shows_ids = self.request.return_token_ids
        content = chat_logprobs(self.names, event.logprobs)
        return ChatChunkChoice(
            index=event.index,
            delta=ChatDelta(role="assistant" if first else None, content=event.text if event.text or first else None),
            logprobs=ChatLogprobs(content=content) if content else None,
            finish_reason=wire_reason(event),
            stop_reason=stop_reason(event),
            token_ids=list(event.token_ids) if shows_ids else None,
            prompt_token_ids=list(self.job.prompt_of(event.index)) if first and shows_ids else None,
            state_health=health_reply(event.health),
            **(self.job.states.reply(event.index) if event.finish_reason is not None and self.job.choices > 1 else {}),
        )

    def _chunk(
        self, choices: list[ChatChunkChoice], usage: Usage | None = None, *, ended: bool = False
    ) -> ChatCompletionChunk:
        """ended: the states of a single choice are named beside it."""
        return ChatCompletionChunk(
            id=self.job.id,
            created=self.job.created,
            model=self.context.model_name,
            system_fingerprint=self.context.fingerprint,
            choices=choices,
            usage=usage,
            **(self.job.states.reply(0) if ended and self.job.choices == 1 else {}),
        )


def _says_something(piece: ChatChunkChoice) -> bool:
    """Half characters and possible stop strings are held back: their events have nothing to show."""
    return bool(piece.delta.content is not None or piece.finish_reason or piece.logprobs or piece.token_ids)


def _join(pieces: Sequence[ChatChunkChoice]) -> ChatChoice:
    """The whole choice from its pieces."""
    first, last = pieces[0], pieces[-1]
    content = [entry for piece in pieces if piece.logprobs is not None for entry in piece.logprobs.content]
    return ChatChoice(
        index=last.index,
        message=AssistantMessage(content="".join(piece.delta.content or "" for piece in pieces)),
        logprobs=ChatLogprobs(content=content) if content else None,
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
        token_ids=join_ids([piece.token_ids for piece in pieces]),
        prompt_token_ids=first.prompt_token_ids,
        state=last.state,
        checkpoints=last.checkpoints,
        state_health=last.state_health,
    )
