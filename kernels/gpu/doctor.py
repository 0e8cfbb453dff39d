"""All checks and timings of the GPU's kernels: what `ostinato doctor --gpu` runs."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from ostinato.kernels.gpu import OPERATORS, checks
from ostinato.kernels.gpu.calls import Call, Draw
from ostinato.kernels.gpu.cases import CASES, Case
from ostinato.kernels.gpu.checks import Capture
from ostinato.kernels.gpu.timing import Timing, time_case
from ostinato.kernels.packed import Packed

STEP_BOUND, SCAN_BOUND, ROUNDED_BOUND = 1e-5, 5e-5, 1e-2  # fp32: a token each, many tokens; operands in bf16
SLOTS = 12
FORKS = {"src": (3, -1, 5, 5, 0, 7, -1), "dst": (3, 1, 2, -1, 0, 8, -1)}  # slots in no order, a fork, padding
OWN = {"src": (3, -1, 5, 5, 0), "dst": (3, 1, 2, 6, 0)}  # every sequence is written
LENGTHS = {True: (3, 1, 2, 0, 18, 2, 1), False: (130, 1, 64, 0, 300, 17, 3)}  # by whether they are small

TooLate = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found.

    error: relative, root mean square, of the worst output or pool, None if there is none; bound: what it may be;
    failure: what went wrong otherwise.
    """

    check: str
    case: str
    dtype: str
    error: float | None
    bound: float
    failure: str | None = None

    @property
    def passed(self) -> bool:
        return self.failure is None and self.error is not None and self.error <= self.bound


@dataclass(frozen=True, slots=True)
class Check:
    """A check of a case, not run yet. error: runs it."""

    name: str
    case: str
    dtype: torch.dtype
    bound: float
    error: Callable[[], float]

    def run(self, too_late: TooLate) -> Finding:
        """Whatever it raises is what it found: one kernel that does not compile must not end the others."""
        described = (self.name, self.case, str(self.dtype).removeprefix("torch."))
        if too_late():
            return Finding(*described, None, self.bound, "not run: the time was over")
        try:
            error = self.error()
            if math.isnan(error):
                return Finding(*described, None, self.bound, "the error is not a number")
            return Finding(*described, error, self.bound)
        except Exception as problem:
            reason = f"{type(problem).__name__}: {problem}".splitlines()[0]
            return Finding(*described, None, self.bound, reason)


def deadline(seconds: float) -> TooLate:
    """Whether so many seconds from now have passed."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def cases() -> list[Case]:
    """Of the operators that have a kernel."""
    return [case for case in CASES if case.operator in OPERATORS]


def checks_of(case: Case, device: torch.device, *, small: bool, capture: Capture) -> Iterator[Check]:
    """Every check of a case, in both dtypes, at small or at the model's own sizes."""
    lengths = LENGTHS[small]
    scan = Packed.of(FORKS["src"], lengths, dst=FORKS["dst"], device=device)
    step = Packed.of(FORKS["src"], [1] * len(lengths), dst=FORKS["dst"], device=device)
    own = Packed.of(OWN["src"], lengths[: len(OWN["src"])], dst=OWN["dst"], device=device)
    own_step = Packed.of(OWN["src"], [1] * len(OWN["src"]), dst=OWN["dst"], device=device)
    size = "small" if small else "real"
    for name, check, batch, float32_bound, bfloat16_bound in (
        ("step = reference", checks.reference, step, STEP_BOUND, ROUNDED_BOUND),
        ("scan = reference", checks.reference, scan, SCAN_BOUND, ROUNDED_BOUND),
        ("steps = scan", checks.steps, own, SCAN_BOUND, None),  # rounded, the two are as far apart as their errors
        ("batch-invariant", checks.invariant, own, 0.0, 0.0),
        ("graph replay", partial(checks.replay, capture=capture), own_step, 0.0, 0.0),
    ):
        for dtype, bound in ((torch.float32, float32_bound), (torch.bfloat16, bfloat16_bound)):
            if bound is not None:
                make = partial(_call, case, dtype, batch, device, small)
                yield Check(name, f"{case.name}, {size}", dtype, bound, _run(check, make))


def _call(case: Case, dtype: torch.dtype, batch: Packed, device: torch.device, small: bool) -> Call:
    return case.call(Draw.of(0, dtype, device), batch, SLOTS, small=small)


def _run(check: Callable[[Call], float], make: Callable[[], Call]) -> Callable[[], float]:
    """Tensors are drawn when the check runs: all of them together would not fit."""
    return lambda: check(make())


def examine(
    device: torch.device, capture: Capture, too_late: TooLate, sizes: Iterable[bool] = (True, False)
) -> Iterator[Finding]:
    """Runs all checks, the small ones first."""
    for small in sizes:
        for case in cases():
            for check in checks_of(case, device, small=small, capture=capture):
                yield check.run(too_late)


def timings(device: torch.device, copy_bandwidth: float, capture: Capture, too_late: TooLate) -> Iterator[Timing]:
    """All timings. Ends early when it is too late."""
    for case in cases():
        if too_late():
            return
        yield from time_case(case, device, copy_bandwidth, capture)
