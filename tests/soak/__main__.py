"""`python -m tests.soak --minutes 30`: soaks a server and says what it has shown; exit code 1 if anything is wrong."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.soak.soak import soak

parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
parser.add_argument("--minutes", type=float, default=30.0)
parser.add_argument("--seed", type=int, default=None, help="default: a new one, which is printed")
parser.add_argument("--model", default="demo")


def _tell(began: float, phase: str) -> None:
    print(f"{time.monotonic() - began:6.0f} s  {phase}", flush=True)


def main() -> int:
    asked = parser.parse_args()
    seed = random.randrange(2**31) if asked.seed is None else asked.seed
    began = time.monotonic()
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as states:
        verdict = soak(asked.minutes, seed, Path(states), lambda phase: _tell(began, phase), asked.model)
    print(verdict.told())
    return 1 if verdict.failures else 0


if __name__ == "__main__":
    sys.exit(main())
