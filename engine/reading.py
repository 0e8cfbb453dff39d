"""Which sequences of a plan can share a forward pass: those whose recurrences are read alike."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ostinato.engine.mitigation import UNTOUCHED

if TYPE_CHECKING:
    from ostinato.engine.types import Chunk


@dataclass(frozen=True, slots=True)
class Reading:
    """How tokens are taken into a state (`ostinato.kernels.treatment`). adds_up: their decays are added up."""

    forget: float = 1.0
    remember: float = 1.0
    adds_up: bool = False


AS_TRAINED = Reading()


def reading_of(chunk: Chunk, *, adds_up: bool) -> Reading:
    """How a chunk is read. adds_up: whether there is memory for sums of decays; a window and a report need them."""
    mitigation, guard = chunk.sequence.mitigation, chunk.sequence.guard
    if mitigation is UNTOUCHED and (guard is None or not adds_up):
        return AS_TRAINED  # nearly all of them, in every step
    wanted = mitigation.window is not None or (guard is not None and guard.reports)
    return Reading(mitigation.forget, mitigation.remember, adds_up and wanted)


def group_alike(chunks: Items[Chunk], *, adds_up: bool) -> dict[Reading, list[int]]:
    """The numbers of the chunks that are read alike, in order. There is a group even where there are no chunks."""
    groups: dict[Reading, list[int]] = {} if chunks else {AS_TRAINED: []}
    for i, chunk in enumerate(chunks):
        groups.setdefault(reading_of(chunk, adds_up=adds_up), []).append(i)
    return groups
