"""What parsers are tried with: valid bytes, where they belong, and a place to put files."""

from __future__ import annotations

import atexit
import functools
import tempfile
from dataclasses import dataclass
from pathlib import Path

GOLDENS = Path(__file__).parent.parent / "goldens"


@dataclass(frozen=True, slots=True)
class Sample:
    """of: which file of which folder `data` is, or the request that it is sent with."""

    of: str
    data: bytes


@functools.cache
def scratch() -> Path:
    """Kept for as long as the process runs, and removed at its end."""
    folder = tempfile.TemporaryDirectory(prefix="ostinato-fuzz-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def place(name: str) -> Path:
    """A folder of that name, which is made."""
    folder = scratch() / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def golden_files(*patterns: str) -> list[Sample]:
    """Files of the golden checkpoints, by glob patterns."""
    paths = sorted({path for pattern in patterns for path in GOLDENS.glob(pattern)})
    return [Sample(str(path.relative_to(GOLDENS)), path.read_bytes()) for path in paths]


@functools.cache
def folder_like(golden: str, name: str) -> Path:
    """A copy of a golden folder whose files are links, but for `name`, which is not there."""
    folder = place(f"{golden}-without-{name}")
    for path in (GOLDENS / golden).iterdir():
        if path.name != name:
            (folder / path.name).symlink_to(path)
    return folder


def put(sample: Sample) -> Path:
    """The sample's file, in a folder with the other files that it lay beside."""
    golden, _, name = sample.of.partition("/")
    path = folder_like(golden, name) / name
    path.unlink(missing_ok=True)  # never written over: somebody may still have it mapped
    path.write_bytes(sample.data)
    return path
