"""A cache of contents before the last tier, object stores without a lock, and budgets of single tiers."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostinato.engine.errors import StateDamagedError, StateNotFoundError, StoreFullError
from ostinato.engine.store import content as state_content
from ostinato.engine.store import object_blobs
from ostinato.engine.store.folder_blobs import FolderBlobs
from ostinato.engine.store.index import StoredContent, choose_victims
from ostinato.engine.store.object_blobs import ObjectBlobs
from ostinato.engine.store.state_store import StateStore, Tier
from tests.engine.store.samples import ALICE, BOB, Clock, content, content_names, ids, one_tier, put, snapshot


@pytest.fixture
def near(tmp_path: Path) -> FolderBlobs:
    return FolderBlobs(tmp_path / "near")


@pytest.fixture
def far(tmp_path: Path) -> FolderBlobs:
    return FolderBlobs(tmp_path / "far")


def test_contents_go_to_every_tier_and_records_to_the_last(near: FolderBlobs, far: FolderBlobs) -> None:
    store = StateStore([Tier(near), Tier(far)], clock=Clock())
    record = put(store, content(1))
    assert content_names(near) == content_names(far) == [f"content/{record.content}.safetensors"]
    assert list(near.list("records/")) == []
    assert [(usage.contents, usage.states) for usage in store.usage()] == [(1, 0), (1, 1)]
    store.delete(ALICE, record.id)
    assert content_names(near) == content_names(far) == []


def test_a_content_comes_from_the_first_tier_that_has_it(near: FolderBlobs, far: FolderBlobs) -> None:
    record = put(one_tier(far, Clock()), content(1))
    store = StateStore([Tier(near), Tier(far)], clock=Clock())
    assert bytes(store.read(ALICE, record.id)[1]) == content(1)
    [name] = content_names(near)
    far.delete(name)
    assert bytes(store.read(ALICE, record.id)[1]) == content(1)


def test_a_damaged_cache_costs_nothing_but_time(near: FolderBlobs, far: FolderBlobs) -> None:
    store = StateStore([Tier(near), Tier(far)], clock=Clock())
    record = put(store, content(1))
    [name] = content_names(near)
    near.put(name, content(2))
    assert bytes(store.read(ALICE, record.id)[1]) == content(1)
    assert bytes(near.get(name) or b"") == content(1)
    for blobs in (near, far):
        blobs.put(name, content(2))
    with pytest.raises(StateDamagedError):
        store.read(ALICE, record.id)


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(
    tmp_path: Path, near: FolderBlobs, far: FolderBlobs, caplog: pytest.LogCaptureFixture
) -> None:
    store = StateStore([Tier(near), Tier(far)], clock=Clock())
    (tmp_path / "near" / "tmp").rmdir()
    (tmp_path / "near" / "tmp").write_bytes(b"")
    record = put(store, content(1))
    assert "a cache tier is passed over" in caplog.text
    assert bytes(store.read(ALICE, record.id)[1]) == content(1)


def test_every_tier_keeps_its_own_budget(near: FolderBlobs, far: FolderBlobs) -> None:
    clock = Clock()
    store = StateStore([Tier(near, 2000), Tier(far, 4000)], clock=clock)
    records = []
    for seed in range(3):
        records.append(put(store, content(seed), pinned=True))
        clock.tick()
    assert content_names(near) == sorted(f"content/{record.content}.safetensors" for record in records[1:])
    store.read(ALICE, records[1].id)
    clock.tick()
    store.read(ALICE, records[0].id)
    assert content_names(near) == sorted(f"content/{record.content}.safetensors" for record in records[:2])
    large = put(store, content(9, size=1000))
    with pytest.raises(StoreFullError):
        put(store, content(10, size=1001))
    assert ids(store.page(ALICE)) == ids([large, *reversed(records)])
    small = StateStore([Tier(near, 1500), Tier(far)], clock=clock)
    small.sweep()
    assert len(content_names(near)) == 1
    assert len(content_names(far)) == 4


def test_an_object_store_deletes_no_young_content(s3_url: str) -> None:
    blobs = ObjectBlobs(s3_url)
    store = one_tier(blobs, Clock())
    record = put(store, snapshot(1))
    store.delete(ALICE, record.id)
    with pytest.raises(StateNotFoundError):
        store.read(ALICE, record.id)
    assert len(content_names(blobs)) == 1
    store.sweep()
    assert len(content_names(blobs)) == 1
    assert store.repair().rebuilt == []
    settled = one_tier(ObjectBlobs(s3_url, grace=0.0), Clock())
    settled.sweep()
    assert content_names(blobs) == []
    assert list(blobs.list("deleted/")) == []


def test_a_deletion_that_waits_is_called_off_by_a_new_put(s3_url: str) -> None:
    store = one_tier(ObjectBlobs(s3_url), Clock())
    put(store, content(1), owner=BOB)
    record = put(store, content(1))
    store.delete(BOB, record.id)
    store.delete(ALICE, record.id)
    again = put(store, content(1))
    one_tier(ObjectBlobs(s3_url, grace=0.0), Clock()).sweep()
    assert bytes(store.read(ALICE, again.id)[1]) == content(1)
    assert list(ObjectBlobs(s3_url).list("deleted/")) == []


def test_an_object_store_evicts_no_young_content(s3_url: str) -> None:
    store = one_tier(ObjectBlobs(s3_url), Clock(), budget=1500)
    record = put(store, content(1))
    with pytest.raises(StoreFullError):
        put(store, content(2))
    assert ids(store.page(ALICE)) == [record.id]


def test_storing_an_old_object_again_makes_it_young(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = ObjectBlobs(s3_url)
    store = one_tier(blobs, Clock())
    put(store, content(1))
    [name] = content_names(blobs)
    uploads: list[str] = []
    upload = object_blobs.obstore.put

    def counted(store: object, path: str, data: bytes, **options: object) -> object:
        uploads.append(path)
        return upload(store, path, data, **options)

    monkeypatch.setattr(object_blobs.obstore, "put", counted)
    put(store, content(1), owner=BOB)
    assert name not in uploads
    now = state_content.steady_time()
    monkeypatch.setattr(state_content, "steady_time", lambda: now + 31)
    put(store, content(1), owner="")
    assert uploads.count(name) == 1


CONTENTS = st.lists(
    st.builds(
        StoredContent,
        digest=st.uuids().map(lambda name: name.hex),
        size=st.integers(0, 50),
        modified=st.integers(0, 5).map(float),
    ),
    max_size=12,
)


@given(CONTENTS, st.integers(-5, 200), st.sets(st.integers(0, 11)))
def test_victims_are_the_oldest_that_may_go_and_no_more_than_needed(
    contents: list[StoredContent], excess: int, kept: set[int]
) -> None:
    keep = {contents[number].digest for number in kept if number < len(contents)}
    victims = choose_victims(contents, excess, lambda content: content.digest in keep)
    free = [content for content in contents if content.digest not in keep]
    assert all(victim in free for victim in victims)
    freed = sum(victim.size for victim in victims)
    assert freed >= excess or len(victims) == len(free)
    if victims:
        assert freed - victims[-1].size < excess
        spared = [content for content in free if content not in victims]
        assert all(content.used >= victims[-1].used for content in spared)
