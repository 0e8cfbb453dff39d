"""/v1/states: reading into a state, and everything that can be done with a stored one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query, Request

from ostinato.engine.errors import RequestError
from ostinato.engine.sampling_params import SamplingParams
from ostinato.engine.states import States, Storing
from ostinato.engine.store.state_store import UNCHANGED, StateRecord
from ostinato.server.api_schema import BODY, STATES, refusals
from ostinato.server.context import Context
from ostinato.server.errors import StateGuardError
from ostinato.server.generation import Job, collect, new_id
from ostinato.server.prompts import chat_prompt
from ostinato.server.protocol import CreateStateRequest, UpdateStateRequest
from ostinato.server.sse import until_disconnect
from ostinato.server.states.job_states import JobStates, checkpoints_of, expires_in, job_states, owner_of
from ostinato.server.states.replies import CreatedState, Deleted, StateCard, StateList
from ostinato.server.validation import StrictJsonRoute

MAX_PAGE = 1000
READ_ONLY = SamplingParams(max_tokens=0)


def states_router(context: Context) -> APIRouter:
    router = APIRouter(route_class=StrictJsonRoute, responses=refusals(*BODY, *STATES, 429))

    @router.post("/v1/states", status_code=201)
    async def create_state(body: CreateStateRequest, request: Request) -> CreatedState:
        started = time.perf_counter()
        context.check_model(body.model)
        storing = Storing(
            expires=expires_in(body.ttl),
            labels=tuple(dict.fromkeys(body.labels)),
            pinned=body.pinned,
            private=body.private,
            lossy=body.lossy,
        )
        states_of(context)
        states = await job_states(
            context,
            request,
            state=body.state,
            initial=body.initial_state,
            storing=storing,
            caches=body.cache_prompt,
            mitigation=body.state_mitigation,
        )
        prompt = await _encode(context, body, states)
        job = Job(new_id("state-"), [prompt], READ_ONLY, 1, body.priority, started, states)
        return await until_disconnect(request.receive, created(context, job))

    @router.get("/v1/states")
    async def list_states(
        request: Request,
        label: str | None = None,
        parent: str | None = None,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 20,
    ) -> StateList:
        store = states_of(context).store
        found = await asyncio.to_thread(
            store.page, owner_of(request), label=label, parent=parent, after=after, limit=limit + 1
        )
        return StateList(data=[card(record) for record in found[:limit]], has_more=len(found) > limit)

    @router.get("/v1/states/{state_id}")
    async def get_state(state_id: str, request: Request) -> StateCard:
        return card(await asyncio.to_thread(states_of(context).store.record, owner_of(request), state_id))

    @router.post("/v1/states/{state_id}")
    async def update_state(state_id: str, body: UpdateStateRequest, request: Request) -> StateCard:
        store = states_of(context).store
        record = await asyncio.to_thread(
            store.update,
            owner_of(request),
            state_id,
            labels=body.labels,
            pinned=body.pinned,
            expires=UNCHANGED if body.ttl is None else expires_in(body.ttl or None),
        )
        return card(record)

    @router.delete("/v1/states/{state_id}")
    async def delete_state(state_id: str, request: Request) -> Deleted:
        await asyncio.to_thread(states_of(context).store.delete, owner_of(request), state_id)
        return Deleted(id=state_id)

    return router


def card(record: StateRecord) -> StateCard:
    """A record as it is shown. The owner is the asker."""
    fields = asdict(record)
    del fields["owner"]
    return StateCard(**{**fields, "labels": list(record.labels)})


def states_of(context: Context) -> States:
    """Raises RequestError: this server keeps no states."""
    if context.states is None:
        raise RequestError("this server keeps no states; start it with --state-store FOLDER")
    return context.states


async def _encode(context: Context, body: CreateStateRequest, states: JobStates) -> tuple[int, ...]:
    """The tokens to read. Fills in the checkpoints and where the turn stands."""
    if (body.prompt is None) == (body.messages is None):
        raise RequestError("send either prompt or messages", "prompt")
    if body.messages is not None:
        if body.checkpoints:
            raise RequestError("checkpoints belong to prompt; in messages, mark the message", "checkpoints")
        return await chat_prompt(context, body.messages, states, answers=False)
    assert body.prompt is not None  # one of the two is there
    ids = await _encode_prompt(context, body.prompt, body, continues=states.start is not None)
    states.checkpoints = checkpoints_of(body.checkpoints, len(ids))
    return ids


async def _encode_prompt(
    context: Context, prompt: str | Sequence[int], body: CreateStateRequest, *, continues: bool
) -> tuple[int, ...]:
    if not isinstance(prompt, str):
        context.check_token_ids(prompt, "prompt")
        return tuple(prompt)
    (ids,) = await context.encode([prompt], "prompt", special=body.add_special_tokens, continues=continues)
    return ids


async def created(context: Context, job: Job) -> CreatedState:
    """Runs a job that only reads. Raises StateGuardError: it came to no state that is worth keeping."""
    await collect(context, job, lambda event: event.index)
    end = job.states.ends.get(0)
    if end is None:
        raise StateGuardError("the state guard ended the reading: the state's norm is above the limit or not finite")
    record = await asyncio.to_thread(states_of(context).store.record, job.states.owner, end.id)
    return CreatedState(**card(record).model_dump(), usage=job.usage(), checkpoints=job.states.marks.get(0))
