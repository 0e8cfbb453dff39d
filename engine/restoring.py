"""Storing the last good state of an answer that the state guard has ended."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ostinato.engine.answer_end import generation_of, snapshot_of
from ostinato.engine.types import NOT_BEGUN

if TYPE_CHECKING:
    from ostinato.engine.snapshots import Snapshot
    from ostinato.engine.types import Sequence


def restored(sequence: Sequence) -> tuple[Snapshot, ...]:
    """The state at the last good look with what it has read, if there is one and the request stores its state.

    None once the answer is complete and the state has been taken back to before that look, since it then stands on
    tokens that are no part of the answer.
    """
    good = None if sequence.guard is None else sequence.guard.good
    if good is None or sequence.keep is None:
        return ()
    log = (*sequence.prompt, *sequence.output)[: good.state.num_read - sequence.base]
    if sequence.closing is not None and sequence.closing.log[: len(log)] != log:
        return ()
    begun = good.outputs > 0 or sequence.resumed.tokens > 0
    output = sequence.output[: good.outputs]
    generation = generation_of(sequence, output, good.held, good.partial) if begun else NOT_BEGUN
    return (snapshot_of(sequence, good.state, log, generation),)
