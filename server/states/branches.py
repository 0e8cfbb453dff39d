"""The ways from one stored state to others: /v1/states/{id}/tree, fork and rewind."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated

from fastapi import APIRouter, Query, Request

from ostinato.engine.errors import RequestError
from ostinato.engine.initial_states import find_initial_state
from ostinato.engine.states import Rewind, States, Storing
from ostinato.engine.store.state_store import StateRecord
from ostinato.server.api_schema import BODY, STATES, refusals
from ostinato.server.context import Context
from ostinato.server.generation import Job, new_id
from ostinato.server.protocol import ForkRequest, RewindRequest
from ostinato.server.sse import until_disconnect
from ostinato.server.states.job_states import JobStates, expires_in, owner_of
from ostinato.server.states.replies import CreatedState, StateList
from ostinato.server.states.routes import MAX_PAGE, READ_ONLY, card, created, states_of
from ostinato.server.validation import StrictJsonRoute

MAX_TREE = 10_000


def state_branches_router(context: Context) -> APIRouter:
    router = APIRouter(route_class=StrictJsonRoute, responses=refusals(*BODY, *STATES, 429))

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
        job = Job(new_id("state-"), [plan.tokens], READ_ONLY, 1, 0, started, _job_states(context, owner, plan, body))
        if plan.tokens:
            return await until_disconnect(request.receive, created(context, job))
        assert plan.parent is not None  # without one, there is something to read
        record = await asyncio.to_thread(_named, states, owner, plan.parent, body)
        return CreatedState(**card(record).model_dump(), usage=job.usage())

    return router


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


def _job_states(context: Context, owner: str, plan: Rewind, body: RewindRequest) -> JobStates:
    """Raises RequestError: the initial state that it all began with is not registered here."""
    begins = plan.parent is None and plan.initial is not None
    return JobStates(
        owner=owner,
        states=states_of(context),
        start=plan.start,
        parent=None if plan.parent is None else plan.parent.id,
        storing=Storing(expires=expires_in(body.ttl), labels=tuple(dict.fromkeys(body.labels))),
        open_turn=plan.open_turn,
        mitigation=plan.mitigation if plan.start is None else None,
        initial=find_initial_state(context.service.initial_states, plan.initial or "") if begins else None,
        region=plan.region,
    )


def _named(states: States, owner: str, record: StateRecord, body: RewindRequest) -> StateRecord:
    """The state that was kept there; a fork of it where the caller has labels or a time to live for it."""
    if not body.labels and body.ttl is None:
        return record
    (fork,) = states.store.fork(owner, record.id, 1, list(dict.fromkeys(body.labels)))
    return fork if body.ttl is None else states.store.update(owner, fork.id, expires=expires_in(body.ttl))
