"""What the routes of /v1/states send."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from ostinato.server.replies import Optional, StateReply, Usage


class StateCard(BaseModel):
    """A stored state. Times in seconds since 1970; `mark` names the checkpoint that it is, if it is one."""

    id: str
    object: Literal["state"] = "state"
    content: str
    parent: str | None
    tokens: int
    bytes: int
    created: float
    used: float
    expires: float | None
    labels: list[str]
    pinned: bool
    model: str
    mark: str | None
    lossy: bool


class StateList(BaseModel):
    """One page, newest first."""

    object: Literal["list"] = "list"
    data: list[StateCard]
    has_more: bool = False


class CreatedState(StateCard):
    """Answer of the routes that read tokens to make a state."""

    usage: Usage
    checkpoints: Optional[list[StateReply]] = None


class Deleted(BaseModel):
    id: str
    object: Literal["state"] = "state"
    deleted: Literal[True] = True
