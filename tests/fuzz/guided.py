"""One target under `atheris`, which prefers inputs that reach new code.

    python -m tests.fuzz.guided TARGET [OPTION ...]

The options are libFuzzer's (https://llvm.org/docs/LibFuzzer.html): -max_total_time=600 for ten minutes, -timeout=60 for
the longest example, -rss_limit_mb=4096 for memory, a folder for what was found to reach new code. Atheris is no part of
the test extra: it has wheels for some systems only (`pip install atheris`). Only our own code is instrumented.
"""

from __future__ import annotations

import contextlib
import sys
from random import Random

import atheris

with atheris.instrument_imports(include=["ostinato"]):
    from tests.fuzz.samples import Sample
    from tests.fuzz.targets import TARGETS, Target


class Guide:
    """Inputs are the number of a sample, in one byte, and its spoilt bytes."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.samples = target.samples()

    def try_one(self, data: bytes) -> None:
        if not data:
            return
        sample = self.samples[data[0] % len(self.samples)]
        with contextlib.suppress(*self.target.allowed):
            self.target.parse(Sample(sample.of, data[1:]))

    def spoil(self, data: bytes, max_size: int, seed: int) -> bytes:
        """A sound sample now and then, else what was found before, spoilt once more."""
        random = Random(seed)
        if len(data) < 2 or random.randrange(4) == 0:
            which = random.randrange(len(self.samples))
            data = bytes([which]) + self.samples[which].data
        try:
            spoilt = self.target.spoil(random, data[1:])
        except Exception:  # what was spoilt before may have no structure left
            spoilt = atheris.Mutate(data[1:], max_size - 1)
        return (data[:1] + spoilt)[:max_size]


def main() -> None:
    name, *options = sys.argv[1:]
    guide = Guide(next(target for target in TARGETS if target.name == name))
    defaults = ["-max_len=1048576", "-timeout=60", "-rss_limit_mb=4096", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *defaults, *options], guide.try_one, custom_mutator=guide.spoil)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
