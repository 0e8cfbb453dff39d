"""One group of targets, tried for a time in a process of its own: `python -m tests.fuzz.run GROUP SECONDS SEED FOLDER`.

What the parsers may not do is guarded from outside of them:

- hang: an example that takes `MOST_CPU_SECONDS` of processor time ends the process, with a traceback of every thread;
- need much memory: no more than `MOST_MEMORY` of addresses above what the process has before the first example, so a
  larger piece raises MemoryError, and no more than `MOST_GROWTH` that is really used;
- crash: the example at work is in FOLDER, whatever becomes of the process.

Prints one line of JSON for each target: how many examples were tried, and how many of them the parser took.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import logging
import resource
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.samples import Sample
from tests.fuzz.targets import TARGETS, Target

MOST_CPU_SECONDS = 20.0
MOST_MEMORY = 2 << 30
MOST_GROWTH = 1 << 30
EXAMPLES = 50  # of one target before the next one's turn
M_ARENA_MAX = -8  # as malloc.h names it
PAGE = resource.getpagesize()


@dataclass(slots=True)
class Count:
    """accepted: that the parser took. growth: bytes of memory that the process has come to use."""

    name: str
    examples: int = 0
    accepted: int = 0
    growth: int = 0


class Trial:
    """Tries examples of one target. watched: one that takes too long ends the process."""

    def __init__(self, target: Target, folder: Path, *, watched: bool = False) -> None:
        self.target = target
        self.watched = watched
        self.samples = target.samples()
        self.count = Count(target.name)
        self._last = folder / target.name
        for sample in self.samples:
            self._parse(sample)

    def go(self, seed: int, examples: int) -> None:
        """As many examples as are wanted, from this seed. Raises what the parser should not have raised."""

        @hypothesis.seed(seed)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],  # shrinking takes minutes, and the edits are few
        )
        @given(st.integers(0, len(self.samples) - 1), st.randoms())
        def tries(which: int, random: Random) -> None:
            sample = self.samples[which]
            self._parse(Sample(sample.of, self.target.spoil(random, sample.data)))

        tries()

    def _parse(self, sample: Sample) -> None:
        self._last.write_bytes(sample.data)
        before = _most_used()
        if self.watched:
            signal.setitimer(signal.ITIMER_PROF, MOST_CPU_SECONDS)
        self.count.examples += 1
        try:
            self.target.parse(sample)
            self.count.accepted += 1
        except self.target.allowed:
            pass
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        growth = _most_used() - before
        self.count.growth += growth
        assert growth < MOST_GROWTH, f"{len(sample.data)} bytes ({sample.of}) made {growth} bytes"


def _most_used() -> int:
    """The most memory that the process has used so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def bound_memory() -> None:
    """Leaves `MOST_MEMORY` above what the process has now. One arena: each thread's own would reserve 64 MiB."""
    ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE
    resource.setrlimit(resource.RLIMIT_AS, (now + MOST_MEMORY, now + MOST_MEMORY))


def run(names: list[str], seconds: float, seed: int, folder: Path) -> list[Count]:
    """Tries the targets in turn until the time is over, each at least once."""
    faulthandler.enable()
    faulthandler.register(signal.SIGPROF, chain=True)
    logging.getLogger("ostinato.engine.store").setLevel(logging.CRITICAL)  # says of every example what was damaged
    chosen = [target for target in TARGETS if target.name in names or target.group in names]
    assert chosen, f"no such target: {names}"
    trials = [Trial(target, folder, watched=True) for target in chosen]
    bound_memory()
    end = time.monotonic() + seconds
    turn = 0
    while turn < len(trials) or time.monotonic() < end:
        trials[turn % len(trials)].go(seed + turn, EXAMPLES)
        turn += 1
    return [trial.count for trial in trials]


def main() -> None:
    names, seconds, seed, folder = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    for count in run(names.split(","), float(seconds), int(seed), Path(folder)):
        print(json.dumps(asdict(count)))


if __name__ == "__main__":
    main()
