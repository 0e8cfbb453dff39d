"""What owners may hold in a state store, on each kind of store."""

import threading
from collections.abc import Callable

import pytest

from ostinato.engine.errors import StateQuotaError
from ostinato.engine.store.blobs import Blobs
from ostinato.engine.store.owner_budget import RECORD_BYTES
from ostinato.engine.store.state_store import StateStore, Tier
from ostinato.engine.store.tier_budget import LISTING_SECONDS
from tests.engine.store.samples import ALICE, BOB, Clock, content, put

ONE = 1000 + RECORD_BYTES  # what a state of `content` costs


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limits() -> dict[str, int]:
    return {ALICE: 2 * ONE}


@pytest.fixture
def store(blobs: Blobs, clock: Clock, limits: dict[str, int]) -> StateStore:
    return limited(blobs, clock, limits)


def limited(blobs: Blobs, clock: Clock, limits: dict[str, int], budget: int | None = None) -> StateStore:
    return StateStore([Tier(blobs, budget)], clock=clock, owner_limit=limits.get)


def held(store: StateStore, owner: str = ALICE) -> set[str]:
    return {record.id for record in store.page(owner)}


def refused(act: Callable[[], object]) -> str:
    with pytest.raises(StateQuotaError) as caught:
        act()
    return str(caught.value)


def test_the_bound_is_exact_and_of_one_owner(store: StateStore) -> None:
    kept = [put(store, content(i)).id for i in (1, 2)]
    message = refused(lambda: put(store, content(3)))
    assert f"{2 * ONE} bytes" in message
    assert f"holds {2 * ONE}" in message
    assert held(store) == set(kept)
    for i in range(5):
        put(store, content(i), owner=BOB)
        put(store, content(i), owner="")


def test_a_state_that_is_there_already_costs_nothing(store: StateStore) -> None:
    first = put(store, content(1))
    put(store, content(2))
    assert put(store, content(1), labels=["again"]).id == first.id


def test_forks_cost_their_records(store: StateStore, limits: dict[str, int]) -> None:
    limits[ALICE] = ONE + 2 * RECORD_BYTES
    first = put(store, content(1))
    refused(lambda: store.fork(ALICE, first.id, 3))
    assert held(store) == {first.id}
    store.fork(ALICE, first.id, 2)
    refused(lambda: store.fork(ALICE, first.id, 1))


def test_what_is_deleted_or_expired_is_room_at_once(store: StateStore, clock: Clock) -> None:
    first = put(store, content(1))
    put(store, content(2), expires=clock.now + 100)
    refused(lambda: put(store, content(3)))
    store.delete(ALICE, first.id)
    put(store, content(3))
    refused(lambda: put(store, content(4)))
    clock.tick(100)
    put(store, content(4))


def test_a_limit_holds_as_it_is_now(store: StateStore, limits: dict[str, int]) -> None:
    put(store, content(1))
    limits[ALICE] = 10
    refused(lambda: put(store, content(2)))
    del limits[ALICE]
    for i in range(5):
        put(store, content(i))


def test_room_is_asked_for_before_there_is_something_to_store(store: StateStore) -> None:
    store.check_room(ALICE, 1000)
    put(store, content(1))
    store.check_room(ALICE, 1000)
    refused(lambda: store.check_room(ALICE, 1001))
    put(store, content(2))
    refused(lambda: store.check_room(ALICE, 0))
    store.check_room(BOB, 10**12)


def test_nobody_is_evicted_for_what_its_owner_may_not_hold(blobs: Blobs, clock: Clock, limits: dict[str, int]) -> None:
    store = limited(blobs, clock, limits, budget=2500)
    put(store, content(1))
    others = put(store, content(2), owner=BOB)
    limits[ALICE] = ONE
    refused(lambda: put(store, content(3)))
    assert held(store, BOB) == {others.id}


def test_another_process_is_seen_after_a_while(blobs: Blobs, clock: Clock, limits: dict[str, int]) -> None:
    mine, others = limited(blobs, clock, limits), limited(blobs, clock, limits)
    put(mine, content(1))
    put(others, content(2))
    clock.tick(LISTING_SECONDS + 1)
    refused(lambda: put(mine, content(3)))


def test_what_fails_to_be_written_takes_no_room(blobs: Blobs, clock: Clock, limits: dict[str, int]) -> None:
    store = limited(blobs, clock, limits)
    put(store, content(1))
    budgeted = limited(blobs, clock, limits, budget=1)
    with pytest.raises(Exception, match="budget"):
        put(budgeted, content(2))
    put(store, content(2))
    refused(lambda: put(store, content(3)))


def test_many_at_once_stay_within_the_bound(store: StateStore, limits: dict[str, int]) -> None:
    limits[ALICE] = 5 * ONE
    outcomes: list[bool] = []

    def save(i: int) -> None:
        try:
            put(store, content(i))
            outcomes.append(True)
        except StateQuotaError:
            outcomes.append(False)

    threads = [threading.Thread(target=save, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(True) == 5
    assert len(held(store)) == 5
