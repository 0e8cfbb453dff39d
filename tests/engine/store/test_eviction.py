"""What expires and what is evicted, the same on a folder, on Redis and on an S3-compatible server."""

from collections.abc import Callable

import pytest

from ostinato.engine.errors import StateNotFoundError, StoreFullError
from ostinato.engine.store.blobs import Blobs
from ostinato.engine.store.state_store import StateStore
from tests.engine.store.samples import ALICE, BOB, Clock, content, content_names, ids, one_tier, put


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(blobs: Blobs, clock: Clock) -> StateStore:
    return one_tier(blobs, clock)


def test_time_to_live_ends_a_state_even_a_pinned_one(store: StateStore, blobs: Blobs, clock: Clock) -> None:
    short = put(store, content(1), expires=clock.now + 10, pinned=True)
    lasting = put(store, content(2))
    clock.tick(9.5)
    store.sweep()
    assert store.record(ALICE, short.id) == short
    clock.tick(0.5)
    with pytest.raises(StateNotFoundError):
        store.read(ALICE, short.id)
    assert store.page(ALICE) == [lasting]
    store.sweep()
    assert content_names(blobs) == [f"content/{lasting.content}.safetensors"]


def test_an_expired_state_that_is_stored_again_is_a_new_one(store: StateStore, clock: Clock) -> None:
    put(store, content(1), expires=clock.now + 10, labels=["old"], pinned=True)
    clock.tick(10)
    again = put(store, content(1), labels=["new"])
    assert (again.created, again.expires, again.labels, again.pinned) == (clock.now, None, ("new",), False)
    assert store.page(ALICE) == [again]


def test_an_expired_state_leaves_the_content_to_those_who_share_it(store: StateStore, clock: Clock) -> None:
    short = put(store, content(1), expires=clock.now + 10)
    lasting = put(store, content(1), owner=BOB)
    clock.tick(20)
    store.sweep()
    assert bytes(store.read(BOB, lasting.id)[1]) == content(1)
    with pytest.raises(StateNotFoundError):
        store.record(ALICE, short.id)


def test_the_least_recently_used_goes_first(blobs: Blobs, clock: Clock) -> None:
    store = one_tier(blobs, clock, budget=3000)
    first, second, third = (put_later(store, clock, seed) for seed in range(3))
    store.read(ALICE, first)
    clock.tick()
    fourth = put_later(store, clock, 3)
    assert set(ids(store.page(ALICE))) == {first, third, fourth}
    fifth = put_later(store, clock, 4)
    assert set(ids(store.page(ALICE))) == {first, fourth, fifth}
    assert second not in ids(store.page(ALICE))
    assert store.usage()[0].bytes == 3000


def test_use_is_remembered_by_the_next_process(reopen: Callable[[], Blobs], clock: Clock) -> None:
    store = one_tier(reopen(), clock, budget=2000)
    first, second = (put_later(store, clock, seed) for seed in range(2))
    clock.tick(100)
    store.read(ALICE, first)
    other = one_tier(reopen(), clock, budget=2000)
    assert other.record(ALICE, first).used == clock.now
    third = put_later(other, clock, 2)
    assert set(ids(other.page(ALICE))) == {first, third}
    assert second not in ids(store.page(ALICE))


def test_pinned_and_held_states_stay_and_a_full_store_says_so(blobs: Blobs, clock: Clock) -> None:
    store = one_tier(blobs, clock, budget=3000)
    pinned = put(store, content(0), pinned=True)
    clock.tick()
    held, fork_parent = put_later(store, clock, 1), put_later(store, clock, 2)
    [fork] = store.fork(ALICE, fork_parent, 1)
    before = store.page(ALICE)
    with store.hold(held), store.hold(fork.id), pytest.raises(StoreFullError, match="budget of 3000 bytes"):
        put_later(store, clock, 3)
    assert store.page(ALICE) == before
    with pytest.raises(StoreFullError):
        put(store, content(4, size=2001))
    assert store.page(ALICE) == before
    put_later(store, clock, 5)
    assert held not in ids(store.page(ALICE))
    assert bytes(store.read(ALICE, pinned.id)[1]) == content(0)


def test_a_conversation_keeps_its_last_turns(blobs: Blobs, clock: Clock) -> None:
    store = one_tier(blobs, clock, budget=3000)
    turns: list[str] = []
    for seed in range(6):
        parent = turns[-1] if turns else None
        with store.hold(parent or f"st_{'0' * 64}"):
            turns.append(put(store, content(seed), parent=parent).id)
        clock.tick()
    assert ids(store.page(ALICE)) == turns[:-4:-1]


def test_sweeping_brings_a_store_within_a_smaller_budget(reopen: Callable[[], Blobs], clock: Clock) -> None:
    large = one_tier(reopen(), clock)
    names = [put_later(large, clock, seed) for seed in range(4)]
    small = one_tier(reopen(), clock, budget=2500)
    small.sweep()
    assert ids(small.page(ALICE)) == [names[3], names[2]]


def put_later(store: StateStore, clock: Clock, seed: int) -> str:
    record = put(store, content(seed))
    clock.tick()
    return record.id
