"""Snapshots, and what lies in a state store: records and contents."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import zstandard

from ostinato.engine.config import EngineConfig
from ostinato.engine.errors import StateDamagedError, StateNotFoundError
from ostinato.engine.loading import load_engine
from ostinato.engine.sampling_params import SamplingParams
from ostinato.engine.snapshot_file import SnapshotFormat
from ostinato.engine.snapshots import Snapshot, TokenLog
from ostinato.engine.state_pool import State
from ostinato.engine.store.blobs import open_blobs
from ostinato.engine.store.record import RECORDS, record_json
from ostinato.engine.store.record import parse_record as parse
from ostinato.engine.store.state_store import StateStore, Tier
from ostinato.engine.types import Generation
from ostinato.server.states.replies import StateCard
from ostinato.server.states.routes import card
from tests.fuzz.samples import GOLDENS, Sample, place
from tests.server.harness import NO_TOKENIZER

LOG = (3, 1, 4, 1, 5, 9, 2, 6)


@functools.cache
def state_format(golden: str = "gla") -> SnapshotFormat:
    return load_engine(EngineConfig(str(GOLDENS / golden), max_batch=1, prefix_cache=0)).snapshots


def snapshot(format: SnapshotFormat, *, private: bool = False) -> Snapshot:
    """A state that was generated with everything that a header can say."""
    tensors = {part.name: torch.rand(part.layers, *part.shape).to(part.dtype) for part in format.spec.tensors}
    return Snapshot(
        state=State(tensors, len(LOG), torch.rand(format.vocab_size)),
        log=TokenLog.of(LOG, private=private),
        generation=Generation(3, {9: 1, 2: 1, 6: 1}, 1, "held", b"\xe2\x82"),
        parent="st_" + "a" * 64,
        params=SamplingParams(temperature=0.5, frequency_penalty=0.5, logit_bias={3: 1.0}, stop=("a",), seed=7),
        seed=7,
        open_turn=True,
        initial="b" * 64,
    )


@functools.cache
def file_samples() -> Sequence[Sample]:
    torch.manual_seed(0)
    found = []
    for golden in ("gla", NO_TOKENIZER.name):
        format = state_format(golden)
        whole = format.encode(snapshot(format))
        private, lossy = format.encode(snapshot(format, private=True)), format.encode(snapshot(format), lossy=True)
        found += [Sample(golden, data) for data in (whole, private, lossy)]
    return found


def parse_file(sample: Sample) -> None:
    """What is taken can be stored again, and is the same then."""
    format = state_format(sample.of)
    taken = format.decode(sample.data)
    again = format.decode(format.encode(taken))
    assert (again.log, again.generation, again.params) == (taken.log, taken.generation, taken.params)


@functools.cache
def _stored() -> tuple[Path, dict[str, bytes]]:
    """A store with two states, one of them a fork: its folder, and its files by their keys."""
    folder = place("store")
    store = StateStore([Tier(open_blobs(folder))])
    format = state_format()
    record = store.put(
        format.encode(snapshot(format)),
        owner="",
        parent=None,
        tokens=len(LOG),
        model=format.fingerprint.digest,
        expires=4e9,
        labels=("a", "b"),
        mark="here",
    )
    store.fork("", record.id, 1, ["c"])
    files = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.suffix in (".json", ".safetensors")
    }
    return folder, files


def record_samples() -> Sequence[Sample]:
    return [Sample(key, data) for key, data in _stored()[1].items() if key.startswith(RECORDS)]


def content_samples() -> Sequence[Sample]:
    return [Sample(key, data) for key, data in _stored()[1].items() if not key.startswith(RECORDS)]


def compressed_samples() -> Sequence[Sample]:
    packer = zstandard.ZstdCompressor()
    return [Sample(f"{sample.of}.zst", packer.compress(sample.data)) for sample in content_samples()]


def parse_record(sample: Sample) -> None:
    """What is taken can be written again, and shown to its owner as JSON that says the same."""
    record = parse(sample.of, sample.data)
    assert record.key == sample.of
    assert parse(sample.of, record_json(record)) == record
    shown = StateCard.model_validate_json(card(record).model_dump_json())
    assert shown.model_dump(exclude={"object"}).items() <= {**asdict(record), "labels": list(record.labels)}.items()


def read_store(sample: Sample) -> None:
    """The store with this file in place of its own: listed, read, repaired, read again."""
    files = _stored()[1]
    damaged = place("damaged-store")
    shutil.rmtree(damaged)
    for key, data in files.items():
        if key.startswith(sample.of.removesuffix(".zst")):
            continue
        (damaged / key).parent.mkdir(parents=True, exist_ok=True)
        (damaged / key).write_bytes(data)
    (damaged / sample.of).parent.mkdir(parents=True, exist_ok=True)
    (damaged / sample.of).write_bytes(sample.data)
    store = StateStore([Tier(open_blobs(damaged))])
    for _ in range(2):
        for record in store.page("", limit=10):
            with contextlib.suppress(StateDamagedError, StateNotFoundError):
                content = store.read("", record.id)[1]
                assert hashlib.sha256(content).hexdigest() == record.content
        store.sweep()
        store.repair()
