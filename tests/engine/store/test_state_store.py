"""The state store, the same on a folder, on a real Redis server and on an S3-compatible server."""

import hashlib
from collections.abc import Callable

import pytest
import zstandard

from ostinato.engine.errors import StateDamagedError, StateIdError, StateNotFoundError
from ostinato.engine.store.blobs import Blobs
from ostinato.engine.store.state_store import StateStore, Tier
from tests.engine.store.samples import ALICE, BOB, MODEL, Clock, content, content_names, ids, one_tier, put


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(blobs: Blobs, clock: Clock) -> StateStore:
    return one_tier(blobs, clock)


def test_a_state_comes_back_with_its_record(store: StateStore, clock: Clock) -> None:
    data = content(1)
    parent = f"st_{'0' * 64}"
    record = store.put(
        data,
        owner=ALICE,
        parent=parent,
        tokens=7,
        model=MODEL,
        expires=clock.now + 100,
        labels=["a", "b"],
        pinned=True,
        mark="here",
        lossy=True,
    )
    assert record.id == f"st_{hashlib.sha256(data).hexdigest()}"
    assert (record.owner, record.parent, record.tokens, record.bytes) == (ALICE, parent, 7, 1000)
    assert (record.created, record.used, record.expires) == (clock.now, clock.now, clock.now + 100)
    assert (record.labels, record.pinned, record.model) == (("a", "b"), True, MODEL)
    assert (record.mark, record.lossy) == ("here", True)
    assert store.record(ALICE, record.id) == record
    found, read = store.read(ALICE, record.id)
    assert found == record
    assert bytes(read) == data


def test_another_owner_sees_nothing(store: StateStore) -> None:
    mine = put(store, content(1))
    for owner in (BOB, ""):
        messages = set()
        for id in (mine.id, f"st_{'0' * 64}"):
            for use in (store.record, store.read, store.delete, store.update):
                with pytest.raises(StateNotFoundError) as caught:
                    use(owner, id)
                messages.add(str(caught.value).replace(id, "ID"))
            with pytest.raises(StateNotFoundError):
                store.fork(owner, id, 1)
        assert len(messages) == 1
        assert store.page(owner) == []
        assert store.children(owner, mine.id) == []
    assert store.record(ALICE, mine.id) == mine


@pytest.mark.parametrize(
    "id",
    ["", "st_", f"st_{'A' * 64}", f"st_{'0' * 63}", f"st_{'0' * 64}\n", "st_../../../etc/passwd", f"../{'0' * 64}"],
)
def test_tricks_in_ids_are_refused(store: StateStore, id: str) -> None:
    for use in (store.record, store.read, store.delete, store.update, store.children):
        with pytest.raises(StateIdError):
            use(ALICE, id)
    with pytest.raises(StateIdError), store.hold(id):
        pass
    with pytest.raises(StateIdError):
        put(store, content(1), parent=id)


@pytest.mark.parametrize("owner", ["..", "anonymous", "ABCDEF01", "aa/../bb", "abc", "0" * 129, f"{'0' * 64}\n"])
def test_tricks_in_owners_are_refused(store: StateStore, owner: str) -> None:
    with pytest.raises(ValueError, match="an owner is"):
        put(store, content(1), owner=owner)
    with pytest.raises(ValueError, match="an owner is"):
        store.page(owner)


def test_the_same_content_is_stored_once(store: StateStore, blobs: Blobs) -> None:
    first = put(store, content(1))
    again = put(store, content(1))
    other = put(store, content(1), owner=BOB)
    assert first.id == again.id == other.id
    assert content_names(blobs) == [f"content/{first.content}.safetensors"]
    store.delete(ALICE, first.id)
    assert bytes(store.read(BOB, other.id)[1]) == content(1)
    store.delete(BOB, other.id)
    assert content_names(blobs) == []


def test_a_state_stored_twice_keeps_what_was_promised_for_either(store: StateStore, clock: Clock) -> None:
    first = put(store, content(1), labels=["a", "b"], pinned=True, expires=clock.now + 10)
    clock.tick()
    later = put(store, content(1), labels=["b", "c"], expires=clock.now + 50)
    assert later == store.record(ALICE, first.id)
    assert (later.labels, later.pinned, later.expires) == (("a", "b", "c"), True, clock.now + 50)
    assert (later.created, later.used) == (first.created, clock.now)
    assert put(store, content(1)).expires is None


def test_forks_share_one_content_and_outlive_their_parent(store: StateStore, blobs: Blobs) -> None:
    parent = put(store, content(1), pinned=True)
    forks = store.fork(ALICE, parent.id, 3, ["branch"])
    assert len({parent.id, *ids(forks)}) == 4
    assert {fork.parent for fork in forks} == {parent.id}
    assert {(fork.content, fork.labels, fork.pinned) for fork in forks} == {(parent.content, ("branch",), False)}
    assert ids(store.children(ALICE, parent.id)) == sorted(ids(forks))
    assert len(content_names(blobs)) == 1
    store.delete(ALICE, parent.id)
    for fork in forks:
        assert bytes(store.read(ALICE, fork.id)[1]) == content(1)
    for fork in forks:
        store.delete(ALICE, fork.id)
    assert content_names(blobs) == []
    with pytest.raises(StateNotFoundError):
        store.fork(ALICE, parent.id, 1)


def test_updates_change_what_is_given(store: StateStore, clock: Clock) -> None:
    record = put(store, content(1), labels=["a"], expires=clock.now + 10)
    assert store.update(ALICE, record.id, pinned=True).pinned
    assert store.update(ALICE, record.id, labels=["x", "y"]).labels == ("x", "y")
    changed = store.update(ALICE, record.id, expires=None)
    assert (changed.pinned, changed.labels, changed.expires) == (True, ("x", "y"), None)
    assert store.record(ALICE, record.id) == changed


def test_pages_are_stable_while_states_come_and_go(store: StateStore, clock: Clock) -> None:
    records = []
    for seed in range(7):
        records.append(put(store, content(seed), labels=["even"] if seed % 2 == 0 else []))
        clock.tick(1 if seed % 3 else 0)  # some share their second
    newest = sorted(records, key=lambda record: (-record.created, record.id))
    first = store.page(ALICE, limit=3)
    clock.tick()
    put(store, content(100))
    store.delete(ALICE, first[0].id)
    second = store.page(ALICE, after=first[-1].id, limit=3)
    third = store.page(ALICE, after=second[-1].id, limit=3)
    assert first + second + third == newest
    even = [record for record in newest if "even" in record.labels and record != first[0]]
    assert store.page(ALICE, label="even") == even
    with pytest.raises(StateNotFoundError):
        store.page(ALICE, after=first[0].id)


def test_pages_by_parent_name_its_children(store: StateStore) -> None:
    parent = put(store, content(1))
    child = put(store, content(2), parent=parent.id)
    assert store.page(ALICE, parent=parent.id) == [child] == store.children(ALICE, parent.id)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "longer", "empty"])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_damaged_content_is_moved_aside_and_never_served(blobs: Blobs, damage: str, compression: None) -> None:
    store = StateStore([Tier(blobs)], compression=compression)
    record = put(store, content(1))
    [name] = content_names(blobs)
    data = bytearray(blobs.get(name) or b"")
    middle = len(data) // 2
    data[middle] ^= 16
    damaged = {"truncated": data[:-1], "flipped": data, "longer": data + b"x", "empty": b""}[damage]
    blobs.put(name, bytes(damaged))
    for _ in range(2):
        with pytest.raises(StateDamagedError, match=record.content):
            store.read(ALICE, record.id)
    assert content_names(blobs) == []
    assert [info.key for info in blobs.list("damaged/")] == [name.replace("content", "damaged")]
    assert store.page(ALICE) == []
    again = put(store, content(1))
    assert bytes(store.read(ALICE, again.id)[1]) == content(1)


def test_storing_over_a_damaged_content_heals_it(store: StateStore, blobs: Blobs) -> None:
    record = put(store, content(1))
    blobs.put(f"content/{record.content}.safetensors", content(2))
    put(store, content(1), owner=BOB)
    assert bytes(store.read(ALICE, record.id)[1]) == content(1)


def test_compressed_and_plain_contents_live_together(blobs: Blobs, clock: Clock) -> None:
    plain = StateStore([Tier(blobs)], clock=clock)
    packed = StateStore([Tier(blobs)], compression="zstd", clock=clock)
    data = b"the same again " * 1000
    record = put(packed, data)
    [name] = content_names(blobs)
    assert name == f"content/{record.content}.safetensors.zst"
    assert zstandard.ZstdDecompressor().decompress(blobs.get(name) or b"") == data
    assert record.bytes == len(data)
    assert packed.usage()[0].bytes < len(data) // 10
    assert bytes(plain.read(ALICE, record.id)[1]) == data
    put(plain, data, owner=BOB)
    assert content_names(blobs) == [name]
    plain.delete(ALICE, record.id)
    plain.delete(BOB, record.id)
    assert content_names(blobs) == []


def test_what_one_process_does_the_other_sees_at_once(reopen: Callable[[], Blobs], clock: Clock) -> None:
    here, there = one_tier(reopen(), clock), one_tier(reopen(), clock)
    record = put(here, content(1))
    assert bytes(there.read(ALICE, record.id)[1]) == content(1)
    assert there.page(ALICE) == [record]
    there.update(ALICE, record.id, labels=["theirs"])
    assert here.page(ALICE, label="theirs")[0].id == record.id
    [fork] = there.fork(ALICE, record.id, 1)
    here.delete(ALICE, record.id)
    assert there.page(ALICE) == [fork]
    assert bytes(here.read(ALICE, fork.id)[1]) == content(1)


def test_usage_counts_contents_and_states(store: StateStore, blobs: Blobs) -> None:
    record = put(store, content(1))
    put(store, content(2))
    store.fork(ALICE, record.id, 2)
    [usage] = store.usage()
    assert (usage.name, usage.bytes, usage.contents, usage.states) == (blobs.name, 2000, 2, 4)
