"""Intervals and tests of shares, against other implementations' numbers and by simulation."""

from __future__ import annotations

import random

import pytest

from ostinato.server.evals.intervals import Pairs, gain_interval, mcnemar, wilson


@pytest.mark.parametrize(
    ("right", "total", "expected"),
    [  # scipy 1.17.1: binomtest(right, total).proportion_ci(method="wilson")
        (0, 7, (0.0, 0.35433043506668743)),
        (3, 10, (0.10779126740630102, 0.6032218525388546)),
        (86, 500, (0.1414541198436514, 0.20754744749912687)),
        (437, 500, (0.8420322822801359, 0.900264711054623)),
        (500, 500, (0.9923756595384479, 1.0)),
    ],
)
def test_wilson(right: int, total: int, expected: tuple[float, float]) -> None:
    assert wilson(right, total) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("lost", "won", "expected"),
    [  # scipy 1.17.1: binomtest(lost, lost + won).pvalue
        (1, 7, 0.0703125),
        (12, 30, 0.007915897334896727),
        (5, 5, 1.0),
        (0, 0, 1.0),
    ],
)
def test_mcnemar(lost: int, won: int, expected: float) -> None:
    assert mcnemar(Pairs(10, lost, won, 10)) == pytest.approx(expected, abs=1e-12)
    assert mcnemar(Pairs(10, won, lost, 10)) == pytest.approx(expected, abs=1e-12)


def test_a_published_example_of_newcombe() -> None:
    """Fagerland, Lydersen and Laake (2014), Statistics in Medicine 33, 2850-2875: the table 1, 1, 7, 12."""
    low, high = gain_interval(Pairs(both=1, lost=7, won=1, neither=12))
    assert (round(low, 3), round(high, 3)) == (-0.507, -0.026)
    turned = gain_interval(Pairs(both=1, lost=1, won=7, neither=12))
    assert turned == pytest.approx((-high, -low))


@pytest.mark.parametrize(
    "pairs", [Pairs(9, 0, 0, 0), Pairs(0, 0, 0, 9), Pairs(0, 9, 0, 0), Pairs(0, 0, 9, 0), Pairs(5, 0, 0, 4)]
)
def test_when_all_questions_are_alike(pairs: Pairs) -> None:
    low, high = gain_interval(pairs)
    gain = (pairs.won - pairs.lost) / 9
    assert -1 <= low <= gain <= high <= 1
    assert low < high


def test_pairs_are_counted() -> None:
    first, second = [True, True, False, False, True], [True, False, True, False, False]
    assert Pairs.of(first, second) == Pairs(both=1, lost=2, won=1, neither=1)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_intervals_hold_what_they_promise(seed: int) -> None:
    """About 95 of 100 intervals hold the truth, here of questions of which some are hard for both ways of asking."""
    rng = random.Random(seed)
    hard, first, second, trials = 0.2, 0.6, 0.75, 1000
    truth, shares, gains = 0.8 * (second - first), 0, 0
    for _ in range(trials):
        pairs = [(hard < rng.random(), rng.random(), rng.random()) for _ in range(120)]
        found = Pairs.of([easy and a < first for easy, a, _ in pairs], [easy and b < second for easy, _, b in pairs])
        low, high = gain_interval(found)
        gains += low <= truth <= high
        low, high = wilson(found.both + found.lost, found.total)
        shares += low <= 0.8 * first <= high
    print(f"seed {seed}: {shares} and {gains} of {trials}")
    assert 0.93 * trials <= shares <= 0.97 * trials
    assert 0.93 * trials <= gains <= 0.98 * trials
