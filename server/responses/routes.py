"""/v1/responses: one turn of a conversation, which goes on from the response that it names.

A response that is stored is a state in the state store. The state's id is made from the response's id, so that it is
found by one look into the store, by any server process that shares it, and is not found with another API key.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

from fastapi import APIRouter, Request
from fastapi.responses import Response

from ostinato.engine.errors import RequestError, StateNotFoundError
from ostinato.engine.states import Storing
from ostinato.server.api_schema import BODY, GENERATION, answers, refusals
from ostinato.server.context import Context
from ostinato.server.errors import PreviousResponseNotFoundError, ResponseNotFoundError
from ostinato.server.generation import Job, new_id
from ostinato.server.params import response_params
from ostinato.server.prompts import chat_prompt
from ostinato.server.responses.protocol import ResponseRequest, state_id_of
from ostinato.server.responses.replies import DeletedResponse, ResponseReply
from ostinato.server.responses.writer import EventResponse, ResponseWriter
from ostinato.server.sse import until_disconnect
from ostinato.server.states.job_states import JobStates, job_states, owner_of, storing_of
from ostinato.server.states.routes import states_of
from ostinato.server.validation import StrictJsonRoute


def responses_router(context: Context) -> APIRouter:
    router = APIRouter(route_class=StrictJsonRoute, responses=refusals(*BODY, *GENERATION))

    @router.post("/v1/responses", response_model=None, responses=answers(ResponseReply, "its events"))
    async def create_response(body: ResponseRequest, request: Request) -> Response:
        started = time.perf_counter()
        context.check_model(body.model)
        params = response_params(context, body)
        response_id = new_id("resp_")
        states = await load_states(context, body, request, _storing(context, body, response_id))
        prompt = await encode_input(context, body, states)
        job = Job(response_id, [prompt], params, 1, body.priority, started, states)
        writer = ResponseWriter(context, body, job)
        if body.stream:
            return EventResponse(writer.events())
        reply = await until_disconnect(request.receive, writer.whole())
        return Response(reply.model_dump_json(), media_type="application/json")

    @router.delete("/v1/responses/{response_id}")
    async def delete_response(response_id: str, request: Request) -> DeletedResponse:
        """Nothing goes on from it any more. The responses that have gone on from it stay."""
        store = states_of(context).store
        try:
            await asyncio.to_thread(store.delete, owner_of(request), state_id_of(response_id))
        except StateNotFoundError:
            raise ResponseNotFoundError(f"no response {response_id[:80]!r}") from None
        return DeletedResponse(id=response_id)

    return router


async def load_states(context: Context, body: ResponseRequest, request: Request, storing: Storing | None) -> JobStates:
    """Loads what the request goes on from. storing: how the state at the answer's end is stored.

    Raises:
        RequestError: two things to go on from, or this server keeps no states.
        PreviousResponseNotFoundError: and what `job_states` raises.
    """
    previous = body.previous_response_id
    if previous is not None and body.state is not None:
        raise RequestError("state and previous_response_id both say what to go on from: send one", "state")
    if previous is not None and context.states is None:
        message = "previous_response_id: this server keeps no states; start it with --state-store FOLDER"
        raise RequestError(message, "previous_response_id")
    try:
        return await job_states(
            context,
            request,
            state=body.state if previous is None else state_id_of(previous),
            initial=body.initial_state,
            storing=storing,
            caches=body.cache_prompt,
            mitigation=body.state_mitigation,
            open_turn=True,
        )
    except StateNotFoundError:
        if previous is None:
            raise
        message = f"previous_response_id: no response {previous[:80]!r}"
        raise PreviousResponseNotFoundError(message, "previous_response_id") from None


def _storing(context: Context, body: ResponseRequest, response_id: str) -> Storing | None:
    """How the state at the answer's end is stored; the metadata become labels of it."""
    storing = storing_of(context.states is not None if body.store is None else body.store)
    if storing is None:
        return None
    metadata = [f"{name}={value}" for name, value in body.metadata.items()]
    return replace(storing, id=state_id_of(response_id), labels=tuple(dict.fromkeys([*storing.labels, *metadata])))


async def encode_input(context: Context, body: ResponseRequest, states: JobStates) -> tuple[int, ...]:
    """The new tokens. Raises RequestError, TextNeedsTokenizerError."""
    if body.input is None and states.start is None:
        raise RequestError("input: Field required, unless there is a response or a state to go on from.", "input")
    try:
        return await chat_prompt(context, body.messages(), states, body.repeat)
    except RequestError as error:
        if not (error.field or "messages").startswith("messages"):
            raise
        raise type(error)(f"input: {str(error).removeprefix('messages: ')}", "input") from None
