"""Every parser that reads bytes from outside, tried with spoilt ones: see `tests.fuzz.targets`.

`make test` tries a few, always the same. `make test-long` tries each group of parsers for OSTINATO_FUZZ_SECONDS in a
process of its own. Its seed is fixed, so that a find does not stop a change that has nothing to do with it;
OSTINATO_FUZZ_SEED gives another, and `python -m tests.fuzz.run` does the same by hand.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.run import Trial
from tests.fuzz.targets import GROUPS, TARGETS, Target

ROOT = Path(__file__).parent.parent.parent
SECONDS = float(os.environ.get("OSTINATO_FUZZ_SECONDS", "30"))
START = 300.0  # seconds that loading the models may take, beside other tests
SEED = int(os.environ.get("OSTINATO_FUZZ_SEED", "1"))


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_spoilt_bytes_are_taken_or_refused(target: Target, tmp_path: Path) -> None:
    trial = Trial(target, tmp_path)
    assert trial.count.accepted, "not even the sound samples are taken"
    print(f"seed {SEED}")
    trial.go(SEED, examples=12)


@pytest.mark.long(minutes=5)
@pytest.mark.timeout(SECONDS + 2 * START)
@pytest.mark.parametrize("group", GROUPS)
def test_spoilt_bytes_for_a_time(group: str, tmp_path: Path) -> None:
    print(f"seed {SEED}")
    command = [sys.executable, "-m", "tests.fuzz.run", group, str(SECONDS), str(SEED), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS + START)
    assert done.returncode == 0, f"seed {SEED}, the last examples lie in {tmp_path}:\n{done.stderr[-6000:]}"
    counts = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    print(counts)
    assert {count["name"] for count in counts} == {target.name for target in TARGETS if target.group == group}
