"""Keeping states as sequences go: for the prefix cache, for the other choices of a request, and to be stored.

A state to be stored stands where the answer's text ends. The token that ends a text (end of text, a stop token) is
left out of its log, since it is not part of the text. A stop string is left out too: its tokens have been read when it
is found, so the state returns to where it may have begun (`Mark`) and reads what is visible from there. One that began
in the answer that this one went on with stays in the log, since nobody remembers that place. An answer that ended by
its length reads its last token, and keeps what is held back of its text for the answer that goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from ostinato.engine.answer_end import end_of_answer, snapshot_of
from ostinato.engine.errors import NotFiniteError
from ostinato.engine.events import Reuse, TokenEvent
from ostinato.engine.followers import release_followers
from ostinato.engine.snapshots import Snapshot, TokenLog
from ostinato.engine.types import NOT_BEGUN, Chunk, Generation, Sequence

if TYPE_CHECKING:
    from torch import Tensor

    from ostinato.engine.prefix_cache import PrefixCache
    from ostinato.engine.state_pool import State


NOT_FINITE = "the state is not finite"


@dataclass(frozen=True, slots=True)
class Keep:
    """What a request wants to have stored.

    The state at the answer's end, and those at the sequence's checkpoints. private: without the token log. before: the
    log of the private state that it began from. encode: text to token ids inside of a text, where there is a tokenizer.
    See `Snapshot` for the others.
    """

    private: bool = False
    before: TokenLog | None = None
    parent: str | None = None
    open_turn: bool = False
    encode: Callable[[str], list[int]] | None = None


@dataclass(slots=True)
class Mark:
    """Where a stop string, or an unfinished character before one, may have begun: nothing of it has been read.

    outputs: tokens of the answer before it. shown: text that became visible since.
    """

    state: State
    outputs: int
    shown: str = ""


@dataclass(frozen=True, slots=True)
class Closing:
    """A sequence that has its answer: `log` (after `base`) is what its state is to have read, `event` its last one."""

    log: tuple[int, ...]
    generation: Generation
    event: TokenEvent


class StateRunner(Protocol):
    """The part of a runner that copies states, and looks into them."""

    def is_finite(self, slot: int) -> bool: ...

    def save(self, slot: int, num_read: int, logits: Tensor | None = None) -> State: ...

    def load(self, slot: int, state: State) -> None: ...


@dataclass(slots=True)
class KeeperStats:
    """Counts since the start."""

    reuse: Counter[Reuse] = field(default_factory=Counter)
    reused_tokens: int = 0


class Keeper:
    """Puts states into slots when sequences begin, and keeps them when they have got somewhere.

    Methods that read a slot raise NotFiniteError: a state with NaN or infinite numbers does not leave it.

    encoder_length: of the model, see `StateSpec`. A state whose region is shorter is never found by its tokens: another
    prompt that begins with them has a longer region, and another state after them.
    """

    def __init__(self, runner: StateRunner, cache: PrefixCache, encoder_length: int = 0) -> None:
        self.cache = cache
        self._encoder_length = encoder_length
        self.stats = KeeperStats()
        self._runner = runner

    def park(self, sequence: Sequence, slot: int) -> None:
        """Takes the state out of a slot that the sequence has lost, into the host's memory."""
        sequence.origin = self._finite(self._runner.save(slot, sequence.num_read)).on_host()

    def begin(self, sequence: Sequence) -> None:
        """Gives a sequence that has got a slot the state it starts from."""
        if sequence.num_read == 0:
            self._choose_origin(sequence)
        if sequence.origin is not None:
            self._runner.load(sequence.slot, sequence.origin)
            sequence.num_read = sequence.origin.num_read

    def after_chunk(self, chunk: Chunk, row: Tensor | None) -> tuple[Snapshot, ...]:
        """Keeps the state at a chunk's end where that is wanted; returns it if it is to be stored. row: [vocabulary]"""
        sequence = chunk.sequence
        if not chunk.keeps or sequence.closing is not None:
            return ()
        state = self._save(sequence, row)
        self._cache(sequence, state, row)
        if sequence.num_read == sequence.prompt_end:
            release_followers(sequence, state)
        if sequence.keep is None or sequence.num_read not in sequence.checkpoints:
            return ()
        log = sequence.prompt[: sequence.num_read - sequence.base]
        return (snapshot_of(sequence, state, log, NOT_BEGUN),)

    def follow_text(self, sequence: Sequence, event: TokenEvent, row: Tensor | None, before: tuple[str, bytes]) -> None:
        """Remembers where a stop string may have begun. before: what the text held back before this token."""
        if sequence.keep is None or sequence.text is None or not sequence.params.stop:
            return
        if not any(before):
            sequence.mark = None
            if isinstance(event.stop_reason, str) or any(sequence.text.pending):
                sequence.mark = Mark(self._save(sequence, row), len(sequence.output) - 1)
        if sequence.mark is not None:
            sequence.mark.shown += event.text

    def finish(self, sequence: Sequence, event: TokenEvent, row: Tensor | None) -> TokenEvent:
        """The answer is complete. Returns its last event, or one that is not the last while there is more to read."""
        if sequence.keep is None:
            if not self._may_cache(sequence) and not self._runner.is_finite(sequence.slot):
                raise NotFiniteError(NOT_FINITE)
            self._cache(sequence, None, row)
            return event
        log, generation = end_of_answer(sequence, event)
        mark = sequence.mark if isinstance(event.stop_reason, str) else None
        if mark is not None:
            self._runner.load(sequence.slot, mark.state)
            sequence.num_read, row = mark.state.num_read, mark.state.logits
        sequence.closing = Closing(log, generation, event)
        if sequence.num_unread == 0:
            return self.closed(sequence, row)
        sequence.closing = Closing(
            log, generation, replace(event, token_ids=(), text="", logprobs=(), prompt_logprobs=())
        )
        return replace(event, finish_reason=None, stop_reason=None)

    def close(self, sequence: Sequence, event: TokenEvent) -> None:
        """Has a sequence that has something to read end, with this event, as soon as it has read that."""
        sequence.keep = sequence.keep or sequence.park
        self.finish(sequence, event, None)

    def closed(self, sequence: Sequence, row: Tensor | None) -> TokenEvent:
        """The last event of a sequence whose closing has been read to its end."""
        closing = sequence.closing
        assert closing is not None
        state = self._save(sequence, row)
        self._cache(sequence, state, row)
        return replace(closing.event, snapshots=(snapshot_of(sequence, state, closing.log, closing.generation),))

    def _choose_origin(self, sequence: Sequence) -> None:
        """Where a sequence starts that has not begun, and where its state is to be kept on the way."""
        caches = self._may_cache(sequence)
        if sequence.origin is None and caches and sequence.params.prompt_logprobs is None:
            match = self.cache.find(sequence.scope or "", sequence.prompt)
            sequence.origin = match.state
            sequence.reuse = Reuse.MISS if match.state is None else Reuse.HIT
            if match.branch is not None:
                sequence.stops.add(match.branch)
        elif sequence.origin is None:
            sequence.reuse = Reuse.SCORED if caches else self._why_not(sequence)
        if sequence.origin is None and sequence.initial is not None:
            sequence.origin = sequence.initial
        origin = sequence.origin
        sequence.stops |= sequence.checkpoints
        sequence.began = 0 if origin is None else origin.num_read
        self.stats.reuse[sequence.reuse] += 1
        self.stats.reused_tokens += sequence.began
        if origin is not None and origin.num_read == sequence.prompt_end:
            release_followers(sequence, origin)
        elif caches or sequence.followers:
            sequence.stops.add(sequence.prompt_end)
        if sequence.params.max_tokens == 0 and sequence.keep is not None:
            sequence.stops.add(sequence.prompt_end)  # where it ends as well

    def _save(self, sequence: Sequence, row: Tensor | None) -> State:
        return self._finite(self._runner.save(sequence.slot, sequence.num_read, row))

    def _finite(self, state: State) -> State:
        if not state.is_finite:
            raise NotFiniteError(NOT_FINITE)
        return state

    def _may_cache(self, sequence: Sequence) -> bool:
        return self._has_cache(sequence) and sequence.region >= self._encoder_length

    def _has_cache(self, sequence: Sequence) -> bool:
        return self.cache.budget > 0 and sequence.scope is not None and sequence.base == 0

    def _why_not(self, sequence: Sequence) -> Reuse:
        return Reuse.REGION if self._has_cache(sequence) else Reuse.OFF

    def _cache(self, sequence: Sequence, state: State | None, row: Tensor | None) -> None:
        """Puts a state, or the slot as it is, into the prefix cache."""
        if not self._may_cache(sequence):
            return
        if state is None:
            state = self._save(sequence, row)
        log = (*sequence.prompt, *sequence.output) if sequence.closing is None else sequence.closing.log
        self.cache.insert(sequence.scope or "", log[: state.num_read], state.on_host())
