"""/v1/states: reading into a state, and everything that can be done with a stored one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query, Request

from ostinato.engine.errors import RequestError
from ostinato.engine.initial_states import find_initial_state
from ostinato.engine.sampling_params import SamplingParams
from ostinato.engine.states import States, Storing
from ostinato.engine.store import KEEP, StateRecord
from ostinato.server.context import Context
from ostinato.server.generation import Job, collect, new_id
from ostinato.server.job_states import JobStates, checkpoints_of, expires_in, job_states, owner_of
from ostinato.server.protocol import CreateStateRequest, ForkRequest, RewindRequest, UpdateStateRequest
from ostinato.server.replies import CreatedState, Deleted, StateCard, StateList
from ostinato.server.sse import until_disconnect
from ostinato.server.validation import StrictJsonRoute

MAX_PAGE = 1000
MAX_TREE = 10_000
READ_ONLY = SamplingParams(max_tokens=0)


def states_router(context: Context) -> APIRouter:
    router = APIRouter(route_class=StrictJsonRoute)

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
        )
        prompt = await _encode(context, body, states)
        job = Job(new_id("state-"), [prompt], READ_ONLY, 1, body.priority, started, states)
        return await until_disconnect(request.receive, _created(context, job))

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
            expires=KEEP if body.ttl is None else expires_in(body.ttl or None),
        )
        return card(record)

    @router.delete("/v1/states/{state_id}")
    async def delete_state(state_id: str, request: Request) -> Deleted:
        await asyncio.to_thread(states_of(context).store.delete, owner_of(request), state_id)
        return Deleted(id=state_id)

    @router.get("/v1/states/{state_id}/tree")
    async def get_tree(
        state_id: str, request: Request, limit: Annotated[int, Query(ge=1, le=MAX_TREE)] = MAX_PAGE
    ) -> StateList:
        found = await asyncio.to_thread(states_of(context).tree, owner_of(request), state_id, limit + 1)
        return StateList(data=[card(record) for record in found[:limit]], has_more=len(found) > limit)

    @router.post("/v1/states/{state_id}/fork", status_code=201)
    async def fork_state(state_id: str, body: ForkRequest, request: Request) -> StateList:
        made = await asyncio.to_thread(_fork, states_of(context), owner_of(request), state_id, body)
        return StateList(data=[card(record) for record in made])

    @router.post("/v1/states/{state_id}/rewind", status_code=201)
    async def rewind_state(state_id: str, body: RewindRequest, request: Request) -> CreatedState:
        started = time.perf_counter()
        states, owner = states_of(context), owner_of(request)
        length = await asyncio.to_thread(_length_after, states, owner, state_id, body)
        plan = await asyncio.to_thread(states.rewind, owner, state_id, length)
        job = JobStates(
            owner=owner,
            states=states,
            start=plan.start,
            parent=None if plan.parent is None else plan.parent.id,
            storing=Storing(expires=expires_in(body.ttl), labels=tuple(dict.fromkeys(body.labels))),
        )
        if plan.parent is None and plan.initial is not None:
            job.initial = find_initial_state(context.service.initial_states, plan.initial)
        job_to_run = Job(new_id("state-"), [plan.tokens], READ_ONLY, 1, 0, started, job)
        if plan.parent is not None and not plan.tokens:
            return CreatedState(**card(plan.parent).model_dump(), usage=job_to_run.usage())
        return await until_disconnect(request.receive, _created(context, job_to_run))

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
        ids, states.checkpoints = await context.encode_chat(body.messages, states.start, answers=False)
        return ids
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


async def _created(context: Context, job: Job) -> CreatedState:
    """Runs a job that only reads."""
    await collect(context, job, lambda event: event.index)
    end = job.states.ends[0]
    record = await asyncio.to_thread(states_of(context).store.record, job.states.owner, end.id)
    return CreatedState(**card(record).model_dump(), usage=job.usage(), checkpoints=job.states.marks.get(0))


def _fork(states: States, owner: str, state_id: str, body: ForkRequest) -> list[StateRecord]:
    """Raises RequestError: n and labels disagree."""
    if body.n is None and not body.labels:
        raise RequestError("send n, or a label for each child", "n")
    if body.n is not None and body.labels and body.n != len(body.labels):
        raise RequestError(f"n is {body.n}, but there are {len(body.labels)} labels", "labels")
    if not body.labels:
        return states.store.fork(owner, state_id, body.n or 1)
    return [states.store.fork(owner, state_id, 1, [label])[0] for label in body.labels]


def _length_after(states: States, owner: str, state_id: str, body: RewindRequest) -> int:
    """How many tokens are to be left. Raises RequestError: not exactly one way to say it, or no such mark."""
    if sum(given is not None for given in (body.back, body.tokens, body.mark)) != 1:
        raise RequestError("send one of back, tokens and mark", "back")
    if body.mark is not None:
        return states.mark(owner, state_id, body.mark).tokens
    if body.tokens is not None:
        return body.tokens
    return states.store.record(owner, state_id).tokens - (body.back or 0)
