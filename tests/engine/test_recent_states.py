"""Which states can be loaded from memory, and in which order they were used."""

from __future__ import annotations

from pathlib import Path

import pytest

from ostinato.engine.sampling_params import SamplingParams
from ostinato.engine.snapshots import Snapshot
from ostinato.engine.states import States, Storing
from ostinato.engine.store.blobs import open_blobs
from ostinato.engine.store.state_store import StateStore, Tier
from tests.engine.test_states import STORE, last_snapshot, loaded, run, sequences

ONE, OTHER = f"st_{'1' * 64}", f"st_{'2' * 64}"
PLENTY = 2**30


@pytest.fixture(scope="module")
def snapshot() -> Snapshot:
    engine = loaded("GLAForCausalLM")
    params = SamplingParams(temperature=0.0, max_tokens=2)
    return last_snapshot(engine, run(engine, sequences(engine, "a", [1, 2, 3], params, states=STORE))["a-0"])


def states(folder: Path, memory: int = PLENTY) -> States:
    store = StateStore([Tier(open_blobs(str(folder)), budget_bytes=PLENTY)])
    return States(loaded("GLAForCausalLM").snapshots, store, memory)


def test_the_states_used_last_come_first(tmp_path: Path, snapshot: Snapshot) -> None:
    here = states(tmp_path)
    for state_id in (ONE, OTHER):
        here.save("", snapshot, Storing(id=state_id))
    assert here.recent(10) == [OTHER, ONE]
    here.load("", ONE)
    assert here.recent(10) == [ONE, OTHER]
    assert here.recent(1) == [ONE]


def test_a_state_of_another_process_is_recent_once_it_was_loaded(tmp_path: Path, snapshot: Snapshot) -> None:
    states(tmp_path).save("", snapshot, Storing(id=ONE))
    here = states(tmp_path)
    assert here.recent(10) == []
    here.load("", ONE)
    assert here.recent(10) == [ONE]


def test_without_memory_no_state_is_at_hand(tmp_path: Path, snapshot: Snapshot) -> None:
    here = states(tmp_path, memory=0)
    here.save("", snapshot, Storing(id=ONE))
    here.load("", ONE)
    assert here.recent(10) == []
