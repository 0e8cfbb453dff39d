"""Snapshots: immutable values that a sequence can be gone on from exactly, anywhere.

A snapshot stands at the end of its token log: its state has read all of it, and its logits predict the next token. So
going on never needs to read anything twice, and an empty prompt goes on at once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from ostinato.engine.mitigation import UNTOUCHED, Mitigation
from ostinato.engine.sampling_params import SamplingParams
from ostinato.engine.state_pool import State
from ostinato.engine.types import NOT_BEGUN, Generation


@dataclass(frozen=True, slots=True)
class TokenLog:
    """What a state has read. tokens: None where they are not kept, which leaves their number and their hash.

    digest: SHA-256 in hex, over the ids as little-endian int32. Where earlier tokens are known only by their digest:
    over that digest in ASCII, then the later tokens.
    """

    length: int
    digest: str
    tokens: tuple[int, ...] | None

    @classmethod
    def of(cls, tokens: tuple[int, ...], before: TokenLog | None = None, *, private: bool = False) -> TokenLog:
        """The log of `tokens`, which follow those of a private log if there is one `before`."""
        data = np.asarray(tokens, dtype="<i4").tobytes()
        if before is None:
            return cls(len(tokens), hashlib.sha256(data).hexdigest(), None if private else tokens)
        if not tokens:
            return before
        return cls(before.length + len(tokens), hashlib.sha256(before.digest.encode() + data).hexdigest(), None)


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """One sequence, complete.

    state: with logits; it has read `log`. generation: how far the answer at the log's end has come. parent: id of the
    stored state that it went on from. params, seed: with which it was made. open_turn: the log ends inside of the
    assistant's turn, which the next message of a conversation has to close. initial: digest of the tuned initial state
    that the log began with, if there was one. region: tokens of the encoder region that the log began with. mitigation:
    with which the state was made.
    """

    state: State
    log: TokenLog
    generation: Generation = NOT_BEGUN
    parent: str | None = None
    params: SamplingParams | None = None
    seed: int | None = None
    open_turn: bool = False
    initial: str | None = None
    region: int = 0
    mitigation: Mitigation = UNTOUCHED
