"""95 % intervals for shares and for the difference of two shares of the same questions.

Formulas: Wilson (1927) for a share; for the paired difference Newcombe (1998), Statistics in Medicine 17, 2635-2650,
method 10, which is made of two Wilson intervals and the correlation between the pairs; McNemar's test, exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import comb, sqrt
from statistics import NormalDist

Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class Pairs:
    """How the same questions were answered twice: `lost` only the first time right, `won` only the second time."""

    both: int
    lost: int
    won: int
    neither: int

    @classmethod
    def of(cls, first: list[bool], second: list[bool]) -> Pairs:
        pairs = list(zip(first, second, strict=True))
        return cls(*(pairs.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False))))

    @property
    def total(self) -> int:
        return self.both + self.lost + self.won + self.neither


def wilson(right: int, total: int) -> tuple[float, float]:
    """The interval around `right / total`. Needs at least one."""
    share, weight = right / total, Z**2 / total
    middle, reach = share + weight / 2, Z * sqrt(share * (1 - share) / total + weight / (4 * total))
    low, high = (middle - reach) / (1 + weight), (middle + reach) / (1 + weight)
    return (0.0 if right == 0 else low), (1.0 if right == total else high)  # what rounding would miss


def gain_interval(pairs: Pairs) -> tuple[float, float]:
    """Around the share that was right the second time less the share that was right the first time."""
    total = pairs.total
    first, second = (pairs.both + pairs.lost) / total, (pairs.both + pairs.won) / total
    low1, high1 = wilson(pairs.both + pairs.lost, total)
    low2, high2 = wilson(pairs.both + pairs.won, total)
    phi = _correlation(pairs)
    down = (second - low2) ** 2 - 2 * phi * (second - low2) * (high1 - first) + (high1 - first) ** 2
    up = (high2 - second) ** 2 - 2 * phi * (high2 - second) * (first - low1) + (first - low1) ** 2
    gain = second - first
    return gain - sqrt(max(0.0, down)), gain + sqrt(max(0.0, up))


def _correlation(pairs: Pairs) -> float:
    """Newcombe's phi: pulled towards 0 by half a question where it is positive; 0 where one side is all alike."""
    a, b, c, d = pairs.both, pairs.lost, pairs.won, pairs.neither
    product = (a + b) * (c + d) * (a + c) * (b + d)
    if product == 0:
        return 0.0
    cross = a * d - b * c
    return (max(cross - pairs.total / 2, 0.0) if cross > 0 else float(cross)) / sqrt(product)


def mcnemar(pairs: Pairs) -> float:
    """How likely so uneven a split of the questions that changed is, if losing and winning were as likely."""
    changed, fewer = pairs.lost + pairs.won, min(pairs.lost, pairs.won)
    tail = sum(comb(changed, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / (1 << changed))
