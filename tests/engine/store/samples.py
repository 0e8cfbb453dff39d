"""Contents, clocks and stores for the state store's tests."""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from safetensors.numpy import save

from ostinato.engine.store.blobs import Blobs
from ostinato.engine.store.state_store import StateRecord, StateStore, Tier

ALICE = hashlib.sha256(b"alice's key").hexdigest()
BOB = hashlib.sha256(b"bob's key").hexdigest()
MODEL = "model-1"


@dataclass
class Clock:
    """Seconds since 1970, as the test says."""

    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now

    def tick(self, seconds: float = 1.0) -> None:
        self.now += seconds


def content(seed: int, size: int = 1000) -> bytes:
    """Bytes that do not compress, other ones for every seed."""
    return random.Random(seed).randbytes(size)


def snapshot(seed: int, parent: str | None = None, tokens: int = 5) -> bytes:
    """A safetensors file with the metadata of a state, written by the safetensors package."""
    tensors = {"state": np.full((4, 8), seed, dtype=np.float32)}
    metadata = {"ostinato": json.dumps({"parent": parent, "tokens": tokens, "model": MODEL})}
    return save(tensors, metadata)


def put(
    store: StateStore,
    data: bytes,
    owner: str = ALICE,
    parent: str | None = None,
    expires: float | None = None,
    labels: Sequence[str] = (),
    pinned: bool = False,
) -> StateRecord:
    """`store.put` with what most tests do not care about filled in."""
    return store.put(
        data, owner=owner, parent=parent, tokens=5, model=MODEL, expires=expires, labels=labels, pinned=pinned
    )


def one_tier(blobs: Blobs, clock: Clock, budget: int | None = None) -> StateStore:
    return StateStore([Tier(blobs, budget)], clock=clock)


def ids(records: Sequence[StateRecord]) -> list[str]:
    return [record.id for record in records]


def content_names(blobs: Blobs) -> list[str]:
    return sorted(info.key for info in blobs.list("content/"))
