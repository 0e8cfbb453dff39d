"""Which sequences run, and what each step reads. Policy only: no torch, no model, no clock.

- A waiting sequence is admitted when a slot is free: lowest `priority` first, then first come, first served. States
  have a fixed size, so an admitted sequence never has to be pushed out again.
- A step reads one token for every sequence that decodes, and fills the rest of its token budget with chunks of
  prompts, in order of admission. Decoding is thus never delayed by more than one budget of prompt tokens.
"""

import bisect
from collections.abc import Iterable
from collections.abc import Sequence as Items

from ostinato.engine.errors import QueueFullError
from ostinato.engine.types import Chunk, Sequence, StepPlan


class Scheduler:
    """Holds every unfinished sequence, and which slot it has.

    Args:
        num_slots: sequences that run at once.
        max_step_tokens: token budget of a step; larger than num_slots, so that prompts always advance.
        max_queue: sequences that may wait beyond the free slots.
    """

    def __init__(self, num_slots: int, max_step_tokens: int, max_queue: int) -> None:
        if max_step_tokens <= num_slots:
            raise ValueError(f"a budget of {max_step_tokens} tokens starves prompts behind {num_slots} slots")
        self.num_slots = num_slots
        self.max_queue = max_queue
        self._budget = max_step_tokens
        self._free = list(range(num_slots - 1, -1, -1))  # a stack: the slot used last is the one in cache
        self._waiting: list[tuple[int, int, Sequence]] = []  # sorted by priority, then arrival
        self._running: dict[str, Sequence] = {}  # in order of admission
        self._ids: set[str] = set()  # of all unfinished sequences
        self._arrivals = 0

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._running)

    def room(self) -> int:
        """How many more sequences may be added now."""
        return max(0, self.max_queue + self.num_free - self.num_waiting)

    def add(self, sequences: Items[Sequence]) -> None:
        """Queues all of the sequences or, raising QueueFullError or ValueError (an id is in use), none."""
        ids = {sequence.id for sequence in sequences}
        if len(ids) < len(sequences) or ids & self._ids:
            raise ValueError(f"ids of sequences must be unique, got {sorted(ids)}")
        if len(sequences) > self.room():
            raise QueueFullError(f"the queue is full ({self.num_waiting} sequences wait)", retry_after=1.0)
        self._ids |= ids
        for sequence in sequences:
            self._arrivals += 1
            bisect.insort(self._waiting, (sequence.priority, self._arrivals, sequence), key=lambda item: item[:2])

    def schedule(self) -> StepPlan:
        """Admits what fits and plans the next step: decode first, then prompts in order of admission."""
        self._admit()
        decoding = [Chunk.of(sequence, 1) for sequence in self._running.values() if not sequence.in_prefill]
        return StepPlan((*decoding, *self._prompt_chunks(self._budget - len(decoding))))

    def remove(self, sequence: Sequence) -> int:
        """Forgets a sequence, running or waiting. Returns the slot that became free, or -1 if it had none."""
        self._ids.discard(sequence.id)
        if self._running.pop(sequence.id, None) is None:
            self._waiting = [item for item in self._waiting if item[2] is not sequence]
        slot, sequence.slot = sequence.slot, -1
        if slot >= 0:
            self._free.append(slot)
        return slot

    def unfinished(self) -> list[Sequence]:
        """All sequences that wait or run."""
        return [*self._running.values(), *(item[2] for item in self._waiting)]

    def _admit(self) -> None:
        while self._free and self._waiting:
            _, _, sequence = self._waiting.pop(0)
            sequence.slot = self._free.pop()
            self._running[sequence.id] = sequence

    def _prompt_chunks(self, budget: int) -> Iterable[Chunk]:
        for sequence in self._running.values():
            if sequence.in_prefill and budget > 0:
                length = min(budget, sequence.num_unread)
                budget -= length
                yield Chunk.of(sequence, length)
