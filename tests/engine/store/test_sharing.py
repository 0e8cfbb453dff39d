"""Several threads and processes on one store, at the same moment."""

import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ostinato.engine.errors import StateNotFoundError, StateStoreError
from ostinato.engine.store.blobs import Blobs, open_blobs
from ostinato.engine.store.state_store import StateStore, Tier
from tests.engine.store.backends import flush
from tests.engine.store.samples import ALICE, BOB, Clock, content, ids, one_tier, put

ROUNDS = 40

OTHER_PROCESS = """
import sys
from ostinato.engine.store.blobs import open_blobs
from ostinato.engine.store.state_store import StateStore, Tier

store = StateStore([Tier(open_blobs(sys.argv[1]))])
owner, id = sys.argv[2:]
record, content = store.read(owner, id)
child = store.put(bytes(content) + b"more", owner=owner, parent=id, tokens=record.tokens + 1, model=record.model)
print(child.id)
"""

RIVAL = """
import sys
from ostinato.engine.store.blobs import open_blobs
from ostinato.engine.store.state_store import StateStore, Tier

store = StateStore([Tier(open_blobs(sys.argv[1]))])
for line in sys.stdin:
    record = store.put(b"the same", owner=sys.argv[2], parent=None, tokens=1, model="m")
    store.delete(sys.argv[2], record.id)
    print("done", flush=True)
"""


@pytest.fixture(params=["folder", "redis"])
def locked_place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The kinds of blobs that have a lock across processes."""
    if request.param == "folder":
        return str(tmp_path / "states")
    url = str(request.getfixturevalue("redis_url"))
    flush(url)
    return url


def test_a_conversation_goes_on_in_another_process(place: str, reopen: Callable[[], Blobs]) -> None:
    store = one_tier(reopen(), Clock())
    record = put(store, content(1))
    command = [sys.executable, "-c", OTHER_PROCESS, place, ALICE, record.id]
    child = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert ids(store.children(ALICE, record.id)) == [child]
    found, data = store.read(ALICE, child)
    assert (found.tokens, bytes(data)) == (6, content(1) + b"more")


def test_a_put_survives_another_process_that_deletes_the_same_content(locked_place: str) -> None:
    store = one_tier(open_blobs(locked_place), Clock())
    command = [sys.executable, "-c", RIVAL, locked_place, BOB]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as rival:
        assert rival.stdin is not None
        assert rival.stdout is not None
        for _ in range(ROUNDS):
            rival.stdin.write("go\n")
            rival.stdin.flush()
            record = put(store, b"the same")
            assert bytes(store.read(ALICE, record.id)[1]) == b"the same"
            assert rival.stdout.readline() == "done\n"
            assert bytes(store.read(ALICE, record.id)[1]) == b"the same"
            store.delete(ALICE, record.id)
        rival.stdin.close()
        assert rival.wait() == 0


@pytest.mark.parametrize("seed", range(2))
def test_threads_put_read_delete_and_evict_together(locked_place: str, seed: int) -> None:
    print(f"seed {seed}")
    stores = [StateStore([Tier(open_blobs(locked_place), 6000)]) for _ in range(2)]
    failures: list[BaseException] = []

    def work(number: int) -> None:
        chance = random.Random(seed * 100 + number)
        try:
            for _ in range(ROUNDS):
                use_at_random(stores[number % 2], chance)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for record in stores[0].page(ALICE, limit=1000):
        stores[1].read(ALICE, record.id)
    assert stores[0].usage() == stores[1].usage()
    stores[0].sweep()
    assert stores[1].usage()[0].bytes <= 6000


def use_at_random(store: StateStore, chance: random.Random) -> None:
    """One operation on one of ten contents; a state may go at any moment, but what is read is right."""
    seed = chance.randrange(10)
    id = put(store, content(seed)).id if chance.random() < 0.5 else chance.choice([*ids(store.page(ALICE)), ""])
    if not id:
        return
    try:
        with store.hold(id):
            record, data = store.read(ALICE, id)
            assert len(data) == record.bytes
        if chance.random() < 0.2:
            store.update(ALICE, id, labels=[str(seed)])
        if chance.random() < 0.2:
            store.fork(ALICE, id, 2)
        if chance.random() < 0.3:
            store.delete(ALICE, id)
    except StateNotFoundError:
        return


def test_updates_of_different_fields_are_both_kept(reopen: Callable[[], Blobs]) -> None:
    stores = [one_tier(reopen(), Clock()) for _ in range(2)]
    record = put(stores[0], content(1))
    threads = [
        threading.Thread(target=stores[0].update, args=(ALICE, record.id), kwargs={"pinned": True}),
        threading.Thread(target=stores[1].update, args=(ALICE, record.id), kwargs={"labels": ["a"]}),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = stores[0].record(ALICE, record.id)
    assert (found.pinned, found.labels) == (True, ("a",))


def test_budgets_hold_for_threads_of_one_process(tmp_path: Path) -> None:
    store = StateStore([Tier(open_blobs(tmp_path), 2500)])
    refused: list[StateStoreError] = []

    def work(seed: int) -> None:
        try:
            put(store, content(seed), pinned=True)
        except StateStoreError as error:
            refused.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 4
    assert store.usage()[0].bytes == 2000
