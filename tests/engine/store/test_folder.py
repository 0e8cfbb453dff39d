"""The state store on a folder whose writers are killed, whose disk is full, read-only or gone, and that is large."""

import errno
import os
import random
import resource
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ostinato.engine.errors import StoreUnavailableError
from ostinato.engine.store.folder_blobs import FolderBlobs
from ostinato.engine.store.state_store import StateStore, Tier
from tests.engine.store import writer as store_writer
from tests.engine.store.backends import missing
from tests.engine.store.samples import ALICE, Clock, content, ids, one_tier, put

BUDGET = 400_000
KILLS = 50
LONGEST_LIFE = 0.06  # seconds: a few puts


@pytest.fixture
def store(tmp_path: Path) -> StateStore:
    return one_tier(FolderBlobs(tmp_path / "states"), Clock())


@contextmanager
def writer(folder: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, store_writer.__file__, str(folder), str(BUDGET)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()
        process.wait()


def kill_one(process: subprocess.Popen[str], seed: int) -> list[str]:
    """Kills a writer at a random moment, a fifth of them before their first put returns.

    Returns the ids of the puts that had returned.
    """
    chance = random.Random(seed)
    victim = "pid" if chance.random() < 0.2 else "kept"
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{seed}\n")
    process.stdin.flush()
    pid = 0
    kept: list[str] = []
    for line in process.stdout:
        word, _, value = line.strip().partition(" ")
        if word == "dead":
            break
        if word == "pid":
            pid = int(value)
        else:
            kept.append(value)
        if word == victim and len(kept) <= 1:
            time.sleep(chance.uniform(0, LONGEST_LIFE))
            os.kill(pid, signal.SIGKILL)
    return kept


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_writer_leaves_every_listed_state_whole(tmp_path: Path, seed: int) -> None:
    print(f"seed {seed}")
    returned = 0
    with writer(tmp_path) as process:
        for kill in range(KILLS):
            kept = kill_one(process, seed * KILLS + kill)
            blobs = FolderBlobs(tmp_path)
            assert list((tmp_path / "tmp").iterdir()) == []
            store = StateStore([Tier(blobs, BUDGET)])
            listed = store.page("", limit=1000)
            for record in listed:
                store.read("", record.id)
            if kept:
                assert kept[-1] in ids(listed)
            assert store.usage()[0].bytes <= BUDGET
            assert not (tmp_path / "damaged").exists()
            returned += len(kept)
    assert returned >= KILLS // 2


def test_a_listing_shows_no_write_in_progress_and_the_living_keep_theirs(tmp_path: Path) -> None:
    blobs = FolderBlobs(tmp_path)
    (tmp_path / "tmp" / "left").write_bytes(b"half a sta")
    with blobs._temporary_file() as (path, _):
        FolderBlobs(tmp_path)
        assert [entry.name for entry in (tmp_path / "tmp").iterdir()] == [path.name]
    assert list(blobs.list("content/")) == []


def test_a_full_disk_is_an_error_and_loses_nothing(
    tmp_path: Path, store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = put(store, content(1))
    name = uuid.uuid4()
    monkeypatch.setattr(uuid, "uuid4", lambda: name)
    (tmp_path / "states" / "tmp" / name.hex).symlink_to("/dev/full")
    with pytest.raises(StoreUnavailableError, match="the disk is full: free some space"):
        put(store, content(2))
    assert store.page(ALICE) == [record]
    put(store, content(2))
    assert len(store.page(ALICE)) == 2


def test_a_limit_on_file_sizes_is_an_error_and_loses_nothing(store: StateStore) -> None:
    record = put(store, content(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(StoreUnavailableError, match="larger than the system allows"):
            put(store, content(2, size=200_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert store.page(ALICE) == [record]
    assert put(store, content(2, size=200_000)) in store.page(ALICE)


def test_a_small_disk_fills_and_goes_on(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk"):
        store = one_tier(FolderBlobs(tmp_path / "disk" / "states"), Clock())
        stored = []
        with pytest.raises(StoreUnavailableError, match="the disk is full"):
            stored.extend(put(store, content(seed, size=100_000)) for seed in range(100))
        assert sorted(ids(store.page(ALICE, limit=100))) == sorted(ids(stored))
        for record in stored:
            store.read(ALICE, record.id)
        store.delete(ALICE, stored[0].id)
        put(store, content(101, size=90_000))


def test_a_read_only_disk_is_read_and_not_written(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk"):
        clock = Clock()
        blobs = FolderBlobs(tmp_path / "disk" / "states")
        store = one_tier(blobs, clock)
        record = put(store, content(1))
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "disk")], check=True)
        clock.tick(1000)
        assert bytes(store.read(ALICE, record.id)[1]) == content(1)
        for change in (
            lambda: put(store, content(2)),
            lambda: store.delete(ALICE, record.id),
            lambda: store.update(ALICE, record.id, pinned=True),
            lambda: store.fork(ALICE, record.id, 1),
        ):
            with pytest.raises(StoreUnavailableError, match="read-only: mount it for writing"):
                change()
        assert ids(store.page(ALICE)) == [record.id]


def test_a_folder_that_lost_its_place_for_writes_is_still_read(tmp_path: Path, store: StateStore) -> None:
    record = put(store, content(1))
    (tmp_path / "states" / "tmp").rmdir()
    (tmp_path / "states" / "tmp").write_bytes(b"")
    with pytest.raises(StoreUnavailableError, match="a part of its path is a file"):
        put(store, content(2))
    assert bytes(store.read(ALICE, record.id)[1]) == content(1)


def test_a_folder_below_a_file_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreUnavailableError, match=r"file/states: .* is a file"):
        FolderBlobs(tmp_path / "file" / "states")


def test_files_of_others_are_no_states(tmp_path: Path, store: StateStore) -> None:
    record = put(store, content(1))
    root = tmp_path / "states"
    for path in ("content/.DS_Store", "content/notes.txt", "content/a b", "records/.x", f"records/{ALICE}/b c.json"):
        (root / path).write_bytes(b"not ours")
    assert store.page(ALICE) == [record]
    store.repair()
    store.sweep()
    assert store.page(ALICE) == [record]
    assert store.usage()[0].contents == 1


def test_other_errors_of_the_disk_are_told_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = FolderBlobs(tmp_path)

    def broken(path: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", broken)
    with pytest.raises(StoreUnavailableError, match="Input/output error"):
        blobs.get("content/a")


@contextmanager
def mounted(folder: Path) -> Iterator[None]:
    """A disk of 1 MB in memory, where the tests may mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "states", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        raise missing("a disk for the test", "run the tests as root, where mount is allowed")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)
