"""POST /v1/completions: text or token ids in, the continuation out."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from fastapi import APIRouter, Request
from fastapi.responses import Response

from ostinato.engine.errors import RequestError
from ostinato.engine.events import TokenEvent
from ostinato.server.api_schema import BODY, GENERATION, answers, refusals
from ostinato.server.context import Context
from ostinato.server.generation import Job, collect, join_ids, new_id, run, stop_reason, wire_reason
from ostinato.server.guard_protocol import guard_of, health_reply
from ostinato.server.logprobs import LegacyWriter, TokenNames, join_legacy
from ostinato.server.params import completion_params
from ostinato.server.prompts import completion_prompts
from ostinato.server.protocol import CompletionRequest
from ostinato.server.repeat_protocol import RepeatOptions
from ostinato.server.replies import Completion, CompletionChoice, LegacyLogprobs, Usage
from ostinato.server.sse import SseResponse, until_disconnect
from ostinato.server.states.job_states import checkpoints_of, job_states, storing_of
from ostinato.server.validation import StrictJsonRoute


def completions_router(context: Context) -> APIRouter:
    router = APIRouter(route_class=StrictJsonRoute, responses=refusals(*BODY, *GENERATION))

    @router.post("/v1/completions", response_model=None, responses=answers(Completion, "each event a piece of it"))
    async def create_completion(body: CompletionRequest, request: Request) -> Response:
        started = time.perf_counter()
        context.check_model(body.model)
        params = completion_params(context, body)
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
        )
        prompts = await completion_prompts(context, body, states)
        states.checkpoints = _checkpoints(body, prompts)
        each = body.best_of or body.n
        context.service.check_count(each * len(prompts), "best_of" if body.best_of else "n")
        job = Job(new_id("cmpl-"), prompts, params, each, body.priority, started, states)
        writer = CompletionWriter(context, body, job)
        if body.stream:
            return SseResponse(writer.chunks())
        reply = await until_disconnect(request.receive, writer.whole())
        return Response(reply.model_dump_json(), media_type="application/json")

    return router


def _checkpoints(body: CompletionRequest, prompts: Sequence[Sequence[int]]) -> dict[int, str | None]:
    if body.checkpoints and len(prompts) > 1:
        raise RequestError("checkpoints need a single prompt", "checkpoints")
    return checkpoints_of(body.checkpoints, len(prompts[0]))


class CompletionWriter:
    """Writes the answer of one request, at once or as a stream: both are made of the same pieces."""

    def __init__(self, context: Context, request: CompletionRequest, job: Job) -> None:
        self.context = context
        self.request = request
        self.job = job
        self.choices: dict[int, ChoiceWriter] = {}  # made with the first event, when the job is accepted

    async def chunks(self) -> AsyncGenerator[Completion, None]:
        async with aclosing(run(self.context, self.job)) as events:
            async for event in events:
                piece = self.piece(event)
                if _says_something(piece):
                    yield self.reply([piece], ended=event.finish_reason is not None)
        options = self.request.stream_options
        if options is not None and options.include_usage:
            yield self.reply([], self.job.usage(), ended=True)

    async def whole(self) -> Completion:
        pieces = await collect(self.context, self.job, self.piece)
        choices = [_join(pieces[index]) for index in self.job.best(self.request.n)]
        for index, choice in enumerate(choices):
            choice.index = index
        return self.reply(choices, self.job.usage(), ended=True)

    def piece(self, event: TokenEvent) -> CompletionChoice:
        if event.index not in self.choices:
            self.choices[event.index] = ChoiceWriter(self.context, self.request, self.job, event.index)
        return self.choices[event.index].piece(event)

    def reply(self, choices: list[CompletionChoice], usage: Usage | None = None, *, ended: bool = False) -> Completion:
        """ended: the states of a single choice are named beside it."""
        states = self.job.states.reply(0) if ended and self.job.choices == 1 else {}
        return Completion(
            **states,
            id=self.job.id,
            created=self.job.created,
            model=self.context.model_name,
            system_fingerprint=self.context.fingerprint,
            choices=choices,
            usage=usage,
        )


class ChoiceWriter:
    """Writes one choice: turns each of its events into what that event adds to the answer."""

    def __init__(self, context: Context, request: CompletionRequest, job: Job, index: int) -> None:
        self.context = context
        self.request = request
        self.job = job
        self.index = index
        self.prompt_index = index // job.n
        self.prompt = job.prompt_of(index)
        names = TokenNames(context.service.tokenizer)
        self.logprobs = LegacyWriter(names, opens=request.echo)
        self.prompt_logprobs = LegacyWriter(names, opens=True)
        self.scored = 0  # prompt tokens whose log-probabilities have come
        self.begun = False

    def piece(self, event: TokenEvent) -> CompletionChoice:
        first, self.begun = not self.begun, True
        shows_ids = self.request.return_token_ids
        logprobs, prompt_logprobs = self._logprobs(event)
        return CompletionChoice(
            index=self.index,
            text=(self._echo() if first and self.request.echo else "") + event.text,
            logprobs=logprobs,
            finish_reason=wire_reason(event),
            stop_reason=stop_reason(event),
            token_ids=list(event.token_ids) if shows_ids else None,
            prompt_token_ids=list(self.prompt) if first and shows_ids else None,
            prompt_logprobs=prompt_logprobs,
            state_health=health_reply(event.health),
            **(self.job.states.reply(self.index) if event.finish_reason is not None and self.job.choices > 1 else {}),
        )

    def _echo(self) -> str:
        """The prompt as the client wrote it, or as its token ids read."""
        prompt, repeat = self.request.prompt, self.request.repeat
        if isinstance(repeat, RepeatOptions):
            behind = self.job.states.start is not None
            return self.context.tokenizer_for("echo").decode(self.prompt, continues=behind)
        prompt = prompt or ""
        given = prompt if isinstance(prompt, str) else prompt[self.prompt_index]
        return given * repeat if isinstance(given, str) else self.context.tokenizer_for("echo").decode(self.prompt)

    def _logprobs(self, event: TokenEvent) -> tuple[LegacyLogprobs | None, LegacyLogprobs | None]:
        """Those of the answer, which with `echo` begin with the prompt's; and the prompt's by themselves."""
        request = self.request
        scored = self.prompt[self.scored : self.scored + len(event.prompt_logprobs)]
        self.scored += len(scored)
        pieces = []
        if request.logprobs is not None:
            if request.echo:
                pieces.append(self.logprobs.write(scored, event.prompt_logprobs, request.logprobs))
            pieces.append(self.logprobs.write(event.token_ids, event.logprobs, request.logprobs))
        of_prompt = None
        if request.prompt_logprobs is not None:
            of_prompt = self.prompt_logprobs.write(scored, event.prompt_logprobs, request.prompt_logprobs)
        return _if_any(join_legacy(pieces)), _if_any(of_prompt)


def _if_any(logprobs: LegacyLogprobs | None) -> LegacyLogprobs | None:
    return logprobs if logprobs is not None and logprobs.tokens else None


def _says_something(piece: CompletionChoice) -> bool:
    """Half characters and possible stop strings are held back: their events have nothing to show."""
    shown = (piece.text, piece.finish_reason, piece.logprobs, piece.token_ids, piece.prompt_logprobs)
    return any(shown) or piece.prompt_token_ids is not None


def _join(pieces: Sequence[CompletionChoice]) -> CompletionChoice:
    """The whole choice from its pieces."""
    first, last = pieces[0], pieces[-1]
    return CompletionChoice(
        index=last.index,
        text="".join(piece.text for piece in pieces),
        logprobs=_join_logprobs([piece.logprobs for piece in pieces]),
        finish_reason=last.finish_reason,
        stop_reason=last.stop_reason,
        token_ids=join_ids([piece.token_ids for piece in pieces]),
        prompt_token_ids=first.prompt_token_ids,
        prompt_logprobs=_join_logprobs([piece.prompt_logprobs for piece in pieces]),
        state=last.state,
        checkpoints=last.checkpoints,
        state_health=last.state_health,
    )


def _join_logprobs(pieces: Sequence[LegacyLogprobs | None]) -> LegacyLogprobs | None:
    return _if_any(join_legacy(piece for piece in pieces if piece is not None))
