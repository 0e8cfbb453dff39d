"""The checks of `ostinato doctor --gpu`, in Triton's interpreter at small sizes, and that they find what is wrong."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ostinato.kernels import roofline
from ostinato.kernels.backends import find_backends
from ostinato.kernels.gpu import OPERATORS, doctor, timing
from ostinato.kernels.gpu.cases import CASES, Case
from ostinato.kernels.gpu.doctor import Check, Finding, checks_of, deadline
from ostinato.kernels.gpu.timing import time_case
from ostinato.kernels.packed import Packed
from ostinato.models import demo
from ostinato.server.cli.gpu_report import run_everything

CPU = torch.device("cpu")
QUICK = {"step = reference", "graph replay"}
WHOLLY = {"causal_conv", "diagonal", "linear", "token_shift"}  # and one form of the recurrence
BY_NAME = {case.name: case for case in doctor.cases()}


def at_once(work: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Stands in for a captured graph: what is captured runs, and runs again when it is replayed."""
    work()
    return work


def never() -> bool:
    return False


def small_checks(case: Case) -> list[Check]:
    return list(checks_of(case, CPU, small=True, capture=at_once))


def test_every_kernel_has_a_case() -> None:
    assert {case.operator for case in CASES} >= OPERATORS.keys()
    assert len(BY_NAME) == len(doctor.cases()), "names are unique"


@pytest.mark.parametrize("case", BY_NAME.values(), ids=BY_NAME)
def test_checks_pass(case: Case) -> None:
    """All of them where the interpreter is quick, elsewhere those of a step; the others run on a GPU."""
    wholly = case.operator in WHOLLY or case.model == "retnet-1.3b"
    chosen = [check for check in small_checks(case) if wholly or check.name in QUICK]
    assert len(chosen) == (9 if wholly else 4)
    findings = [check.run(never) for check in chosen]
    assert [finding for finding in findings if not finding.passed] == []


Launcher = Callable[..., Tensor]


def inaccurate(launcher: Launcher) -> Launcher:
    return lambda *operands, **named: launcher(*operands, **named) * (1 + 1e-3)


def not_a_number(launcher: Launcher) -> Launcher:
    return lambda *operands, **named: launcher(*operands, **named) * torch.nan


def writes_elsewhere(launcher: Launcher) -> Launcher:
    """x, log_decay, state: the pool's last slot belongs to nobody."""

    def wrong(x: Tensor, log_decay: Tensor, state: Tensor, *rest: Any) -> Tensor:
        y = launcher(x, log_decay, state, *rest)
        state[-1] = 1.0
        return y

    return wrong


def forgets_its_state(launcher: Launcher) -> Launcher:
    def wrong(x: Tensor, log_decay: Tensor, state: Tensor, *rest: Any) -> Tensor:
        return launcher(x, log_decay, state.clone(), *rest)

    return wrong


def looks_at_the_batch(launcher: Launcher) -> Launcher:
    """A last bit that depends on how many sequences there are."""
    return lambda x, *rest: launcher(x, *rest) * (1 + 2**-23 * (rest[2].numel() > 1))


def counts_its_calls(launcher: Launcher) -> Launcher:
    calls: list[None] = []

    def wrong(*operands: Any) -> Tensor:
        calls.append(None)
        return launcher(*operands) + 1e-6 * len(calls)

    return wrong


def breaks(launcher: Launcher) -> Launcher:
    del launcher

    def wrong(*operands: Any) -> Tensor:
        raise RuntimeError("out of registers\nand more")

    return wrong


def findings_with(wrong: Callable[[Launcher], Launcher], monkeypatch: pytest.MonkeyPatch) -> dict[str, Finding]:
    """Of the diagonal recurrence in fp32, by the name of the check."""
    monkeypatch.setitem(OPERATORS, "diagonal", wrong(OPERATORS["diagonal"]))
    checks = small_checks(BY_NAME["diagonal, recurrentgemma-2b"])
    return {check.name: check.run(never) for check in checks if check.dtype == torch.float32}


@pytest.mark.parametrize(
    ("wrong", "check", "words"),
    [
        (inaccurate, "step = reference", None),
        (inaccurate, "scan = reference", None),
        (not_a_number, "scan = reference", "not a number"),
        (not_a_number, "steps = scan", "not a number"),
        (writes_elsewhere, "step = reference", "state changed in slots that no sequence writes"),
        (forgets_its_state, "scan = reference", "not a number"),
        (forgets_its_state, "steps = scan", None),
        (forgets_its_state, "batch-invariant", "other bits"),
        (looks_at_the_batch, "batch-invariant", "tokens 0 to 2 of a sequence of 3 have other bits alone"),
        (counts_its_calls, "graph replay", "the replayed step has other bits"),
        (breaks, "step = reference", "RuntimeError: out of registers"),
    ],
)
def test_what_is_wrong_is_found(
    wrong: Callable[[Launcher], Launcher], check: str, words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = findings_with(wrong, monkeypatch)[check]
    assert not finding.passed
    if words is None:
        assert finding.failure is None
    else:
        assert finding.failure is not None
        assert words in finding.failure


def test_checks_that_come_too_late_have_not_passed() -> None:
    assert deadline(0.0)()
    assert not deadline(1000.0)()
    (check, *_) = small_checks(BY_NAME["diagonal, recurrentgemma-2b"])
    finding = check.run(lambda: True)
    assert not finding.passed
    assert finding.failure == "not run: the time was over"


def test_examine_goes_through_everything() -> None:
    found = list(doctor.examine(CPU, at_once, lambda: True))
    assert len(found) == 9 * 2 * len(BY_NAME)
    assert {finding.case for finding in found} == {f"{name}, {size}" for name in BY_NAME for size in ("small", "real")}


def test_a_timing_counts_the_bytes_that_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operands in bf16, the state and the output in fp32; with every pass over all copies taking a second."""
    monkeypatch.setattr(timing, "median_seconds", lambda replay, device: replay() is None or 1.0)
    monkeypatch.setattr(timing, "SCAN_TOKENS", 3)
    monkeypatch.setattr(timing, "STEP_SEQUENCES", 2)
    monkeypatch.setattr(timing, "WORKING_SET", 2**17)
    case = BY_NAME["diagonal, recurrentgemma-2b"]
    step, scan = time_case(case, CPU, copy_bandwidth=1e6, capture=at_once)
    channels = case.real["channels"]
    moved = 2 * channels * (2 + 4 + 4) + 2 * 2 * channels * 4  # x, log_decay, y; the states, read and written
    copies = -(-(2**17) // moved)
    assert (step.shape, scan.shape) == ("step of 2", "scan of 3")
    assert step.bytes_per_second == moved * copies
    assert step.fraction == moved * copies / 1e6
    assert step.microseconds == 1e6 / copies


def test_the_calls_of_a_case_are_the_same_every_time() -> None:
    batch = Packed.of([0, 1], [2, 3])
    first, again = (
        BY_NAME["causal_conv, mamba2-370m"].call(doctor.Draw.of(0, torch.float32, CPU), batch, 4, small=True)
        for _ in range(2)
    )
    assert all(torch.equal(x, again.per_token[name]) for name, x in first.per_token.items())
    assert all(torch.equal(x, again.pools[name]) for name, x in first.pools.items())


def test_everything_that_doctor_does_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole report, with the CPU in place of the GPU and little to do."""
    monkeypatch.setattr(doctor, "CASES", (BY_NAME["diagonal, recurrentgemma-2b"],))
    monkeypatch.setattr(doctor, "LENGTHS", {True: (2, 1, 1, 0, 3, 2, 1), False: (1, 1, 1, 0, 2, 1, 1)})
    monkeypatch.setattr(timing, "SCAN_TOKENS", 3)
    monkeypatch.setattr(timing, "STEP_SEQUENCES", 2)
    monkeypatch.setattr(timing, "WORKING_SET", 1)
    monkeypatch.setattr(roofline, "BUFFER_BYTES", 2**20)
    monkeypatch.setattr(demo, "NAMES", ("gla",))
    report = run_everything(find_backends(), "cpu", at_once)
    assert [finding for finding in report.findings if not finding.passed] == []
    assert [finding.check for finding in report.findings[-3:]] == ["logits = CPU", "batch-invariant", "graph replay"]
    assert len(report.findings) == 9 * 2 + 3
    assert len(report.timings) == 2
    assert "21 of 21 checks passed" in report.markdown()
    assert json.loads(json.dumps(dataclasses.asdict(report)))["timings"][0]["shape"] == "step of 2"
