"""Which sequences run, and what each step reads. Policy only: no torch, no model, no clock.

- A waiting sequence is admitted when a slot is free: lowest `priority` first, then first come, first served.
- When none is free and a more urgent one waits, the least urgent that runs is parked, the youngest among equals: its
  state leaves its slot, and it waits again, in its old place. At most as many are parked as there are slots.
- A step reads one token for every sequence that decodes, and fills the rest of its token budget with chunks of
  prompts, in order of admission. Decoding is thus never delayed by more than one budget of prompt tokens.
- A chunk ends where a state is to be kept or looked at, or where something is done to it.
- An encoder region (see `StateSpec.encoder_length`) is one chunk, whatever the budget: a step may read one of them
  beyond its budget, and no more. A prompt shorter than that costs as much, since the model pads it.
"""

import bisect
from collections.abc import Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass

from ostinato.engine.errors import QueueFullError
from ostinato.engine.types import Chunk, Sequence, StepPlan


@dataclass(frozen=True, slots=True)
class Moves:
    """Changes of slots before a step. parked: who lost which slot; admitted: who got one. In this order."""

    parked: tuple[tuple[Sequence, int], ...]
    admitted: tuple[Sequence, ...]


class Scheduler:
    """Holds every unfinished sequence, and which slot it has.

    Args:
        num_slots: sequences that run at once.
        max_step_tokens: token budget of a step; larger than num_slots, so that prompts always advance.
        max_queue: sequences that may wait beyond the free slots.
        encoder_length: of the model, see `StateSpec`.
    """

    def __init__(self, num_slots: int, max_step_tokens: int, max_queue: int, encoder_length: int = 0) -> None:
        if max_step_tokens <= num_slots:
            raise ValueError(f"a budget of {max_step_tokens} tokens starves prompts behind {num_slots} slots")
        self.num_slots = num_slots
        self.max_queue = max_queue
        self.encoder_length = encoder_length
        self._budget = max_step_tokens
        self._free = list(range(num_slots - 1, -1, -1))  # a stack: the slot used last is the one in cache
        self._waiting: list[Sequence] = []  # sorted by urgency
        self._running: dict[str, Sequence] = {}  # in order of admission
        self._parked: set[str] = set()  # ids of those that wait with a state
        self._arrivals: dict[str, int] = {}  # of all unfinished sequences, by id
        self._arrived = 0

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_parked(self) -> int:
        return len(self._parked)

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
        if len(ids) < len(sequences) or ids & self._arrivals.keys():
            raise ValueError(f"ids of sequences must be unique, got {sorted(ids)}")
        if len(sequences) > self.room():
            raise QueueFullError(f"the queue is full ({self.num_waiting} sequences wait)", retry_after=1.0)
        for sequence in sequences:
            self._arrived += 1
            self._arrivals[sequence.id] = self._arrived
            if sequence.origin is None and not sequence.region:
                sequence.region = min(self.encoder_length, sequence.prompt_end)
            self._wait(sequence)

    def admit(self) -> Moves:
        """Gives slots to those who wait: the free ones, and those of less urgent sequences."""
        parked, admitted = [], []
        while (sequence := self._next_waiting()) is not None:
            if not self._free:
                victim = self._least_urgent()
                if victim.priority <= sequence.priority or self.num_parked >= self.num_slots:
                    break
                parked.append((victim, self._park(victim)))
            self._waiting.remove(sequence)
            self._parked.discard(sequence.id)
            sequence.slot = self._free.pop()
            self._running[sequence.id] = sequence
            admitted.append(sequence)
        return Moves(tuple(parked), tuple(admitted))

    def plan(self) -> StepPlan:
        """What the next step reads: decode first, then prompts in order of admission."""
        decoding = [
            Chunk.of(sequence, sequence.num_unread) for sequence in self._running.values() if not sequence.in_prefill
        ]
        return StepPlan((*decoding, *self._prompt_chunks(self._budget - len(decoding))))

    def remove(self, sequence: Sequence) -> int:
        """Forgets a sequence, running or waiting. Returns the slot that became free, or -1 if it had none."""
        self._arrivals.pop(sequence.id, None)
        self._parked.discard(sequence.id)
        if self._running.pop(sequence.id, None) is None:
            self._waiting = [item for item in self._waiting if item is not sequence]
        return self._take_slot(sequence)

    def unfinished(self) -> list[Sequence]:
        """All sequences that wait or run."""
        return [*self._running.values(), *self._waiting]

    def _urgency(self, sequence: Sequence) -> tuple[int, int]:
        """Sorts the most urgent first."""
        return sequence.priority, self._arrivals[sequence.id]

    def _wait(self, sequence: Sequence) -> None:
        bisect.insort(self._waiting, sequence, key=self._urgency)

    def _next_waiting(self) -> Sequence | None:
        return next((sequence for sequence in self._waiting if not sequence.held_back), None)

    def _least_urgent(self) -> Sequence:
        return max(self._running.values(), key=self._urgency)

    def _park(self, sequence: Sequence) -> int:
        del self._running[sequence.id]
        self._parked.add(sequence.id)
        self._wait(sequence)
        return self._take_slot(sequence)

    def _take_slot(self, sequence: Sequence) -> int:
        slot, sequence.slot = sequence.slot, -1
        if slot >= 0:
            self._free.append(slot)
        return slot

    def _prompt_chunks(self, budget: int) -> Iterable[Chunk]:
        for sequence in self._running.values():
            if sequence.in_prefill and budget > 0:
                whole = sequence.next_stop() - sequence.num_read
                length = whole if sequence.reads_region else min(budget, whole)
                budget -= self.encoder_length if sequence.reads_region else length
                yield Chunk.of(sequence, length)
