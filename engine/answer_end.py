"""What is stored of a sequence: where its answer ends, how far it has come there, and the snapshot of that."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ostinato.engine.snapshots import Snapshot, TokenLog
from ostinato.engine.types import Generation

if TYPE_CHECKING:
    from ostinato.engine.events import TokenEvent
    from ostinato.engine.state_pool import State
    from ostinato.engine.types import Sequence


def end_of_answer(sequence: Sequence, event: TokenEvent) -> tuple[tuple[int, ...], Generation]:
    """The log (after `base`) on which the stored state is to stand, and how far the answer has come there."""
    output, held, partial = sequence.output, "", b""
    if isinstance(event.stop_reason, int):
        output = output[:-1]
    elif event.stop_reason is not None and sequence.mark is not None and sequence.keep is not None:
        shown = sequence.mark.shown
        visible = sequence.keep.encode(shown) if shown and sequence.keep.encode is not None else []
        output = [*output[: sequence.mark.outputs], *visible]
    elif sequence.text is not None:
        held, partial = sequence.text.pending
    return (*sequence.prompt, *output), generation_of(sequence, output, held, partial)


def generation_of(sequence: Sequence, output: list[int], held: str, partial: bytes) -> Generation:
    """How far an answer has come whose tokens of this sequence are `output`."""
    index = sequence.index + sequence.resumed.index
    counts = Counter(sequence.resumed.counts)
    counts.update(output)
    return Generation(sequence.resumed.tokens + len(output), dict(counts), index, held, partial)


def snapshot_of(sequence: Sequence, state: State, log: tuple[int, ...], generation: Generation) -> Snapshot:
    """What is to be stored of a sequence whose `state` has read `log` (after `base`)."""
    keep, answers = sequence.keep, generation.tokens > 0  # a prompt has the same state, whatever was to follow it
    assert keep is not None  # nobody else's state is stored
    return Snapshot(
        state=state.on_host(),
        log=TokenLog.of(log, keep.before, private=keep.private),
        generation=generation,
        parent=keep.parent,
        params=sequence.params if answers else None,
        seed=sequence.seed if answers and sequence.params.temperature > 0.0 else None,
        open_turn=keep.open_turn,
        initial=sequence.initial_digest,
        region=sequence.region,
        mitigation=sequence.mitigation,
    )
