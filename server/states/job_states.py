"""What one request has to do with states: which one it goes on from, and which ones it leaves behind."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import Request

from ostinato.engine.continuation import Continuation
from ostinato.engine.errors import RequestError
from ostinato.engine.events import FinishReason, TokenEvent
from ostinato.engine.guard import GuardOptions
from ostinato.engine.initial_states import InitialState, choose_initial_state
from ostinato.engine.keeping import Keep
from ostinato.engine.mitigation import Mitigation
from ostinato.engine.snapshots import Snapshot
from ostinato.engine.states import States, Storing
from ostinato.engine.steady_clock import steady_time
from ostinato.engine.store.state_store import StateRecord
from ostinato.server.context import Context
from ostinato.server.guard_protocol import MitigationFields, mitigation_of
from ostinato.server.protocol import StoreOptions
from ostinato.server.replies import StateReply

PARKED = "parked"  # the mark of a state that was stored because the server went down
PARKED_SECONDS = 24 * 3600.0  # that such a state is kept of a request that did not ask for one


def owner_of(request: Request) -> str:
    """Whose states a request may see. Where API keys are checked, `Authentication` has found that out.

    Otherwise whoever sends a key has states of its own, by the key's hash, and "" is everybody without one.
    """
    owner: str | None = getattr(request.state, "owner", None)
    if owner is not None:
        return owner
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    return hashlib.sha256(key.strip().encode()).hexdigest() if scheme.lower() == "bearer" and key.strip() else ""


def storing_of(store: bool | float | StoreOptions) -> Storing | None:
    """What the request field `store` asks for; None for nothing."""
    if isinstance(store, bool):
        return Storing() if store else None
    if not isinstance(store, StoreOptions):
        return Storing(expires=steady_time() + store)
    return Storing(
        expires=expires_in(store.ttl),
        labels=tuple(dict.fromkeys(store.labels)),
        pinned=store.pinned,
        private=store.private,
        lossy=store.lossy,
    )


def expires_in(ttl: float | None) -> float | None:
    """Seconds since 1970; None for never."""
    return None if ttl is None else steady_time() + ttl


@dataclass(slots=True)
class JobStates:
    """See the module. Belongs to one request.

    start, parent: what it goes on from, and its id. storing: how the state at the end is stored; None: it is not.
    caches: whether the prefix cache is used. checkpoints: lengths of its prompt at which the state is to be kept, with
    their names; stops: of each prompt, those at which the prefix cache is to keep it. marks, ends: what was stored of
    each choice: at checkpoints, in order, and at its end. initial: the memory before the first token. region: see
    `Continuation`. parking: how the state is stored where the server goes down before the end; None: it is not.
    mitigation, guard, health: see `Continuation`.
    """

    owner: str
    states: States | None
    start: Snapshot | None = None
    parent: str | None = None
    storing: Storing | None = None
    checkpoints: Mapping[int, str | None] = field(default_factory=dict)
    stops: Sequence[frozenset[int]] = ()
    caches: bool = True
    open_turn: bool = False
    initial: InitialState | None = None
    region: int = 0
    parking: Storing | None = None
    mitigation: Mitigation | None = None
    guard: GuardOptions | None = None
    health: bool = False
    marks: dict[int, list[StateReply]] = field(default_factory=dict)
    ends: dict[int, StateReply] = field(default_factory=dict)

    @property
    def tokens_before(self) -> int:
        """That the state it goes on from has read."""
        return 0 if self.start is None else self.start.log.length

    def continuation(self) -> Continuation:
        """As the engine wants to know it. Raises RequestError: there are checkpoints that nobody would keep."""
        if self.checkpoints and self.storing is None and not self.caches:
            raise RequestError(
                "checkpoints: nothing keeps them; ask for store, or let the prefix cache be used (cache_prompt)",
                "checkpoints",
            )
        keep, park = self._keep(self.storing), self._keep(self.parking)
        marks = frozenset(self.tokens_before + length for length in self.checkpoints)
        scope = self.owner if self.caches else None
        own = [frozenset(self.tokens_before + length for length in of_prompt) for of_prompt in self.stops]
        stops = own if self.caches else ()
        guarding = (self.mitigation, self.guard, self.health)
        return Continuation(
            self.start, self.parent, keep, scope, marks, self.initial, stops, self.region, park, *guarding
        )

    def _keep(self, storing: Storing | None) -> Keep | None:
        if storing is None:
            return None
        private = storing.private or (self.start is not None and self.start.log.tokens is None)
        return Keep(private=private, open_turn=self.open_turn)

    def hold(self) -> AbstractContextManager[None]:
        """While this is open, the state that the request goes on from is not evicted."""
        if self.states is None or self.parent is None:
            return nullcontext()
        return self.states.store.hold(self.parent)

    async def take(self, event: TokenEvent) -> None:
        """Stores what an event brought. Raises StateStoreError."""
        for i, snapshot in enumerate(event.snapshots):
            if event.finish_reason is not None and i == len(event.snapshots) - 1:
                parked = event.finish_reason is FinishReason.PARKED
                self.ends[event.index] = await self._store(event.index, snapshot, at_end=True, parked=parked)
            elif not _is_the_end(event, snapshot):
                reply = await self._store(event.index, snapshot, at_end=False)
                self.marks.setdefault(event.index, []).append(reply)

    async def _store(self, index: int, snapshot: Snapshot, *, at_end: bool, parked: bool = False) -> StateReply:
        """Each goes back to the one before, so that a checkpoint lies on the way to the end."""
        wanted = self.parking if parked else self.storing
        assert self.states is not None  # nothing is kept otherwise
        assert wanted is not None
        before = self.marks.get(index)
        snapshot = replace(snapshot, parent=before[-1].id if before else self.parent)
        storing = wanted if at_end else replace(wanted, labels=(), id=None)
        mark = PARKED if parked else self.checkpoints.get(snapshot.log.length - self.tokens_before)
        record = await asyncio.to_thread(self.states.save, self.owner, snapshot, storing, mark=mark)
        return reply_of(record, snapshot)

    def reply(self, index: int) -> dict[str, Any]:
        """The fields `state` and `checkpoints` of an answer, for a choice that has ended."""
        return {"state": self.ends.get(index), "checkpoints": self.marks.get(index)}


def _is_the_end(event: TokenEvent, snapshot: Snapshot) -> bool:
    """A checkpoint at the end of a prompt with no answer is the end itself."""
    return event.finish_reason is not None and event.snapshots[-1].log.length == snapshot.log.length


async def job_states(
    context: Context,
    request: Request,
    *,
    state: str | None,
    initial: str | None = None,
    storing: Storing | None,
    checkpoints: Mapping[int, str | None] | None = None,
    caches: bool = True,
    open_turn: bool = False,
    mitigation: MitigationFields | None = None,
    guard: GuardOptions | None = None,
    health: bool = False,
) -> JobStates:
    """Loads the state that a request goes on from; without one, finds the initial state of that name.

    Raises:
        RequestError: this server keeps no states, or has no such initial state.
        StateNotFoundError, StateDamagedError, SnapshotError: the state cannot be gone on from.
        StateQuotaError: there is no room for the state that is to be stored.
    """
    owner, states = owner_of(request), context.states
    if initial is not None and state is not None:
        raise RequestError("initial_state: a state has its own beginning; send one of the two", "initial_state")
    if states is None and (state is not None or storing is not None):
        field_name = "state" if state is not None else "store"
        raise RequestError(f"{field_name}: this server keeps no states; start it with --state-store FOLDER", field_name)
    if storing is not None and states is not None:
        least = 0 if storing.lossy else context.service.info.bytes_per_state
        await asyncio.to_thread(states.store.check_room, owner, least)
    start = None
    if state is not None and states is not None:
        with context.metrics.restore.time():
            start = await asyncio.to_thread(states.load, owner, state)
    return JobStates(
        owner=owner,
        states=states,
        start=start,
        parent=state,
        storing=storing,
        checkpoints=checkpoints or {},
        caches=caches and context.service.stats().cache_budget > 0,
        open_turn=open_turn,
        parking=_parking(context, storing),
        initial=choose_initial_state(context.service.initial_states, initial) if state is None else None,
        mitigation=mitigation_of(mitigation),
        guard=guard,
        health=health,
    )


def _parking(context: Context, storing: Storing | None) -> Storing | None:
    if context.states is None or not context.settings.park_on_drain:
        return None
    return storing or Storing(expires=expires_in(PARKED_SECONDS))


def reply_of(record: StateRecord, snapshot: Snapshot | None = None) -> StateReply:
    """A record as an answer names it."""
    generation = None if snapshot is None else snapshot.generation
    pending = "" if generation is None else generation.held + generation.partial.decode("utf-8", errors="replace")
    return StateReply(
        id=record.id,
        parent=record.parent,
        tokens=record.tokens,
        bytes=record.bytes,
        expires=record.expires,
        pending=pending or None,
        mark=record.mark,
        mitigation=None if snapshot is None else snapshot.mitigation.asked or None,
    )


def checkpoints_of(given: list[int] | dict[str, int], num_tokens: int) -> dict[int, str | None]:
    """The request field `checkpoints`: names by length of the prompt. Raises RequestError: beyond the prompt."""
    named: dict[int, str | None] = (
        dict.fromkeys(given) if isinstance(given, list) else {length: name for name, length in given.items()}
    )
    if len(named) < len(given):
        raise RequestError("checkpoints: two of them are at the same place", "checkpoints")
    beyond = [length for length in named if length > num_tokens]
    if beyond:
        raise RequestError(f"checkpoints: {beyond[0]} is beyond the prompt of {num_tokens} tokens", "checkpoints")
    return named
