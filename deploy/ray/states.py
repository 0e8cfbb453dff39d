"""Which state a request goes on from, and which replicas have it at hand."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from ostinato.server.responses.protocol import state_id_of

STATE_PATH = re.compile(r"/v1/states/(st_[0-9a-f]{64})")
STATES = "states"  # in what a replica reports: the states that it holds in memory
REPORTED = 512  # of them


class Reporting(Protocol):
    """A replica, as Ray shows it to a router."""

    @property
    def routing_stats(self) -> Mapping[str, Any]: ...  # Any: what the replica has reported


R = TypeVar("R", bound=Reporting)


def state_of(path: str, body: bytes) -> str | None:
    """The id of the state that a request goes on from, if it names one. Whatever is wrong with the request is left to
    the server to say.
    """
    if match := STATE_PATH.match(path):
        return match[1]
    try:
        fields = json.loads(body) if body else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    previous, state = fields.get("previous_response_id"), fields.get("state")
    if isinstance(previous, str):
        return state_id_of(previous)
    return state if isinstance(state, str) else None


def short(state_id: str) -> str:
    """Enough of an id to tell states apart. A wrong replica costs time, never an answer."""
    return state_id.removeprefix("st_")[:16]


def ranked(replicas: Sequence[R], state: str | None) -> list[list[R]]:
    """The replicas that hold the state, and all of them; each in random order, since of equals the first is taken."""
    anyone = random.sample(replicas, len(replicas))
    if state is None:
        return [anyone]
    return [[replica for replica in anyone if short(state) in replica.routing_stats.get(STATES, ())], anyone]
