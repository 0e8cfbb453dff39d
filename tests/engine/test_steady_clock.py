"""The clock by which states expire: it goes on as before when somebody sets the machine's."""

from __future__ import annotations

import pytest

from ostinato.engine.steady_clock import JUMP_SECONDS, PATIENCE_SECONDS, SteadyClock


class Machine:
    """A clock on the wall that can be set, and one that cannot."""

    def __init__(self) -> None:
        self.wall, self.steady = 1_700_000_000.0, 50.0

    def goes_on(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds

    def clock(self) -> SteadyClock:
        return SteadyClock(lambda: self.wall, lambda: self.steady)


def test_it_tells_the_time_of_day() -> None:
    machine = Machine()
    clock = machine.clock()
    for seconds in (0.0, 3.5, 86_400.0):
        machine.goes_on(seconds)
        assert clock() == pytest.approx(machine.wall, abs=1e-3)


@pytest.mark.parametrize("seconds", [0.2, -0.2, JUMP_SECONDS, -JUMP_SECONDS])
def test_small_corrections_are_followed(seconds: float) -> None:
    machine = Machine()
    clock = machine.clock()
    for _ in range(100):
        machine.wall += seconds
        assert clock() == pytest.approx(machine.wall, abs=1e-3)


@pytest.mark.parametrize("hours", [5, -5])
def test_a_jump_and_back_is_not_noticed(hours: float) -> None:
    machine = Machine()
    clock, right = machine.clock(), machine.wall
    for jump in (3600 * hours, -3600 * hours):
        machine.wall += jump
        for _ in range(10):
            machine.goes_on(60)
            right += 60
            assert clock() == pytest.approx(right, abs=1e-3)


@pytest.mark.parametrize("hours", [5, -5])
def test_a_jump_that_lasts_is_believed(hours: float) -> None:
    machine = Machine()
    clock = machine.clock()
    machine.wall += 3600 * hours
    clock()
    machine.goes_on(PATIENCE_SECONDS - 1)
    assert clock() == pytest.approx(machine.wall - 3600 * hours, abs=1e-3)
    machine.goes_on(1)
    assert clock() == pytest.approx(machine.wall, abs=1e-3)


def test_patience_begins_anew_with_each_jump() -> None:
    machine = Machine()
    clock, right = machine.clock(), machine.wall
    for _ in range(20):
        machine.wall += 7200
        clock()
        machine.goes_on(PATIENCE_SECONDS / 2)
        machine.wall -= 7200
        clock()
        machine.goes_on(PATIENCE_SECONDS / 2)
        right += PATIENCE_SECONDS
    assert clock() == pytest.approx(right, abs=1e-3)
