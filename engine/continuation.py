"""How a request relates to states: what it goes on from, what is to be kept of it, and what is done to its state."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ostinato.engine.errors import RequestError
from ostinato.engine.guard import REPORTING, Guarded, GuardOptions
from ostinato.engine.mitigation import FIELD, UNTOUCHED, Mitigation, described

if TYPE_CHECKING:
    from ostinato.engine.info import ModelInfo
    from ostinato.engine.initial_states import InitialState
    from ostinato.engine.keeping import Keep
    from ostinato.engine.snapshots import Snapshot


@dataclass(frozen=True, slots=True)
class Continuation:
    """How a request relates to states.

    start, parent: the snapshot that it goes on from, and its id. keep: what is to be stored; its `before` and `encode`
    are filled in here. scope: whose prefix cache it may use and fill; None: nobody's. checkpoints: lengths of the log,
    within the prompt, at which a state is to be kept as well; stops: of each prompt, further ones for the prefix cache
    alone. initial: the memory before the first token, where there is no snapshot. region: how many of the first tokens
    are the encoder region, where it is not what the model makes of the prompt: of a state that is read once more. park:
    how it is stored where the server goes down before its end. mitigation: None for that of `start`, or none at all
    without one. guard: None looks at no state. health: whether what it found is to be told.
    """

    start: Snapshot | None = None
    parent: str | None = None
    keep: Keep | None = None
    scope: str | None = None
    checkpoints: frozenset[int] = frozenset()
    initial: InitialState | None = None
    stops: Items[frozenset[int]] = ()
    region: int = 0
    park: Keep | None = None
    mitigation: Mitigation | None = None
    guard: GuardOptions | None = None
    health: bool = False

    @property
    def effective_mitigation(self) -> Mitigation:
        """Raises RequestError: the state to go on from was made with another."""
        if self.start is None:
            return UNTOUCHED if self.mitigation is None else self.mitigation
        made_with = self.start.mitigation
        if self.mitigation is not None and self.mitigation != made_with:
            raise RequestError(
                f"{FIELD}: the state was made with {described(made_with)}, and cannot go on with "
                f"{described(self.mitigation)}; leave it out to go on with the state's own",
                FIELD,
            )
        return made_with

    def guarded(self) -> Guarded | None:
        """How each sequence is guarded: one value for each, since it is written to."""
        if self.guard is None and not self.health:
            return None
        return Guarded(self.guard or REPORTING, self.health)


FRESH = Continuation()


def with_defaults(states: Continuation, info: ModelInfo, guard: GuardOptions) -> Continuation:
    """The same with the server's mitigation and guard where the request, or its state, has none of its own.

    Raises RequestError: the mitigation does not apply to the model.
    """
    if states.mitigation is None and states.start is None:
        states = replace(states, mitigation=info.mitigation)
    if states.guard is None and (guard.acts or states.health):
        states = replace(states, guard=guard)
    states.effective_mitigation.check(info)
    return states
