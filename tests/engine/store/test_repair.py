"""Lost and damaged records, and damaged contents, on every kind of blobs."""

import pytest

from ostinato.engine.errors import StateDamagedError
from ostinato.engine.store.blobs import Blobs
from ostinato.engine.store.state_store import StateStore, Tier
from tests.engine.store.samples import ALICE, MODEL, Clock, content, ids, one_tier, put, snapshot


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_lost_records_are_made_from_the_contents(blobs: Blobs, compression: None) -> None:
    store = StateStore([Tier(blobs)], compression=compression)
    first = put(store, snapshot(1, tokens=11))
    second = put(store, snapshot(2, parent=first.id, tokens=12))
    kept = put(store, snapshot(3))
    for record in (first, second):
        blobs.delete(record.key)
    report = store.repair()
    assert {(record.id, record.owner, record.parent, record.tokens, record.model) for record in report.rebuilt} == {
        (first.id, "", None, 11, MODEL),
        (second.id, "", first.id, 12, MODEL),
    }
    assert (report.damaged, report.foreign, report.lost) == ([], [], [])
    assert bytes(store.read("", second.id)[1]) == snapshot(2, parent=first.id, tokens=12)
    assert store.page(ALICE) == [kept]
    assert store.repair().rebuilt == []


def test_a_damaged_record_is_an_error_until_it_is_repaired(blobs: Blobs) -> None:
    store = one_tier(blobs, Clock())
    record = put(store, snapshot(1, tokens=9))
    [fork] = store.fork(ALICE, record.id, 1)
    whole = bytes(blobs.get(record.key) or b"")
    for damaged in (whole[:-10], whole.replace(b'"tokens": 5', b'"tokens": "5"'), b"[]", b"\xff", fork_of(whole)):
        blobs.put(record.key, damaged)
        with pytest.raises(StateDamagedError, match="the record of"):
            store.record(ALICE, record.id)
        assert ids(store.page(ALICE)) == [fork.id]
    blobs.put(fork.key, b"{}")
    report = store.repair()
    assert [(rebuilt.id, rebuilt.owner, rebuilt.tokens) for rebuilt in report.rebuilt] == [(record.id, ALICE, 9)]
    assert report.lost == [fork.key]
    assert ids(store.page(ALICE)) == [record.id]


def test_storing_a_state_again_heals_its_record(blobs: Blobs) -> None:
    store = one_tier(blobs, Clock())
    record = put(store, snapshot(1))
    blobs.put(record.key, b"{")
    assert put(store, snapshot(1)) == record == store.record(ALICE, record.id)


def fork_of(record: bytes) -> bytes:
    """The record of another state, under this one's key."""
    return record.replace(b'"id": "st_', b'"id": "st_f')


def test_repair_finds_damaged_contents_and_leaves_what_is_no_state(blobs: Blobs) -> None:
    store = one_tier(blobs, Clock())
    damaged, plain = put(store, snapshot(1)), put(store, content(2))
    blobs.put(f"content/{damaged.content}.safetensors", snapshot(3))
    blobs.delete(plain.key)
    report = store.repair()
    assert report.rebuilt == []
    assert report.damaged == [f"content/{damaged.content}.safetensors"]
    assert report.foreign == [f"content/{plain.content}.safetensors"]
    assert store.page(ALICE) == []
    store.sweep()
    assert [info.key for info in blobs.list("records/")] == []
