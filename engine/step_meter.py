"""What steps cost: their time, and the sequences and tokens in them. Written by the engine's thread, read from any."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence as Items

    from ostinato.engine.types import Sequence, StepPlan

# Seconds. From a small model's step on a GPU to a full budget of prompt tokens on a slow CPU.
STEP_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
WAIT_BOUNDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TOKEN_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)

PHASES = ("prefill", "decode", "mixed")
PARTS = ("plan", "run", "sample", "commit")


class Distribution:
    """Counts of values up to each bound, as Prometheus' histograms have them."""

    def __init__(self, bounds: Items[float]) -> None:
        self.bounds = bounds
        self.total = 0.0
        self._counts = [0] * (len(bounds) + 1)

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        return sum(self._counts)

    def buckets(self) -> list[tuple[str, float]]:
        """Each bound, the last one infinite, with how many values do not exceed it."""
        names = [*(str(float(bound)) for bound in self.bounds), "+Inf"]
        return list(zip(names, map(float, accumulate(list(self._counts))), strict=True))


class StepMeter:
    """seconds: of whole steps, by phase; parts: seconds spent in each part of them; batch, tokens: in a step; wait: of
    sequences for their first slot, in seconds; failed: steps that raised; not_finite: sequences ended by numbers that
    are not finite, by where they were.
    """

    def __init__(self) -> None:
        self.seconds = {phase: Distribution(STEP_BOUNDS) for phase in PHASES}
        self.parts = dict.fromkeys(PARTS, 0.0)
        self.batch = Distribution(BATCH_BOUNDS)
        self.tokens = Distribution(TOKEN_BOUNDS)
        self.wait = Distribution(WAIT_BOUNDS)
        self.failed = 0
        self.not_finite = Counter(logits=0, state=0)
        self._phase = ""
        self._began: float | None = None
        self._lap = 0.0

    @property
    def age(self) -> float:
        """Seconds that the step in progress has taken so far; 0 between steps."""
        began = self._began
        return 0.0 if began is None else time.monotonic() - began

    @property
    def num_steps(self) -> int:
        return sum(phase.count for phase in self.seconds.values())

    @property
    def num_seconds(self) -> float:
        return sum(phase.total for phase in self.seconds.values())

    def begin(self) -> None:
        """A step begins."""
        self._began = self._lap = time.monotonic()

    def planned(self, plan: StepPlan) -> None:
        """It knows what it is to do."""
        reads = [chunk.sequence.in_prefill for chunk in plan.chunks]
        self._phase = "" if not reads else "mixed" if any(reads) and not all(reads) else PHASES[not any(reads)]
        if reads:
            self.batch.observe(len(reads))
            self.tokens.observe(sum(chunk.length for chunk in plan.chunks))
        self.lap("plan")

    def lap(self, part: str) -> None:
        """A part of the step is done."""
        now = time.monotonic()
        self.parts[part] += now - self._lap
        self._lap = now

    def end(self) -> None:
        """The step is done. One that had nothing to do is not counted."""
        self.lap("commit")
        if self._phase and self._began is not None:
            self.seconds[self._phase].observe(self._lap - self._began)
        self._began = None

    def begun(self, sequence: Sequence) -> None:
        """A sequence has its first slot."""
        if sequence.waited is None:
            sequence.waited = time.monotonic() - sequence.arrived
            self.wait.observe(sequence.waited)
