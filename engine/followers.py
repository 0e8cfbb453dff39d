"""The choices of a request that wait until the first of them, their leader, has read the prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ostinato.engine.events import Reuse
from ostinato.engine.types import Sequence

if TYPE_CHECKING:
    from ostinato.engine.state_pool import State


def release_followers(leader: Sequence, state: State) -> None:
    """The leader's prompt has been read: the other choices start from its end."""
    for follower in leader.followers:
        follower.origin, follower.held_back, follower.reuse = state, False, Reuse.FORK
    leader.followers = []


def replace_leader(leader: Sequence) -> None:
    """The leader ended before it had read the prompt: the first of the others takes its place."""
    if leader.followers:
        heir, *others = leader.followers
        heir.held_back, heir.followers = False, others
        leader.followers = []
