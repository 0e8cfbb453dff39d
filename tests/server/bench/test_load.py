"""What `ostinato bench serve` draws: arrivals, lengths and words. No request is sent here."""

from __future__ import annotations

import math
import random
import statistics
from itertools import islice, pairwise

import pytest

from ostinato.server.bench.load import WORDS, Lengths, ServeLoad, TokensPerWord, some_words

FIXED = Lengths.parse("8")
SEEDS = (0, 1, 2)


def load(rate: float, **bounds: float | None) -> ServeLoad:
    return ServeLoad(rate, FIXED, FIXED, **{"seed": 0, **bounds})


def kolmogorov_distance(samples: list[float], mean: float) -> float:
    """The largest distance between the distribution of samples and the exponential one."""
    n, ordered = len(samples), sorted(samples)
    cumulated = [1 - math.exp(-sample / mean) for sample in ordered]
    return max(max((i + 1) / n - share, share - i / n) for i, share in enumerate(cumulated))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rate", [0.2, 7.0, 900.0])
def test_gaps_between_arrivals_are_exponential(rate: float, seed: int) -> None:
    """By the Kolmogorov-Smirnov test at 1 %, whose critical value is 1.628 / sqrt(n) for large n, and by the mean."""
    count = 5000
    arrivals = load(rate, requests=count, seed=seed).arrivals()
    gaps = [after - before for before, after in pairwise([0.0, *arrivals])]
    assert len(gaps) == count
    assert kolmogorov_distance(gaps, 1 / rate) < 1.628 / math.sqrt(count)
    assert statistics.fmean(gaps) == pytest.approx(1 / rate, rel=4 / math.sqrt(count))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_number_of_arrivals_in_a_second_is_of_poisson(seed: int) -> None:
    """Its variance is its mean, and the counts of two seconds know nothing of each other."""
    rate, seconds = 5.0, 4000
    arrivals = load(rate, seconds=float(seconds), seed=seed).arrivals()
    counts = [0] * seconds
    for time in arrivals:
        counts[int(time)] += 1
    assert statistics.fmean(counts) == pytest.approx(rate, rel=0.05)
    assert statistics.variance(counts) == pytest.approx(rate, rel=0.1)
    assert abs(statistics.correlation(counts[:-1], counts[1:])) < 4 / math.sqrt(seconds)


def test_the_same_seed_draws_the_same_and_another_another() -> None:
    first, again, other = (load(3.0, requests=50, seed=seed) for seed in (5, 5, 6))
    assert first.arrivals() == again.arrivals() != other.arrivals()
    asked = [list(islice(one.questions(), 50)) for one in (first, again, other)]
    assert asked[0] == asked[1] != asked[2]


def test_turns_with_one_seed_differ_in_rate_and_words_alone() -> None:
    lengths = Lengths.parse("1:100"), Lengths.parse("lognormal:30,1")
    slow, fast = (ServeLoad(rate, *lengths, 30, seed=3, turn=turn) for turn, rate in enumerate((1.0, 50.0)))
    first, second = (list(islice(turn.questions(), 30)) for turn in (slow, fast))
    assert [(q.prompt_tokens, q.new_tokens) for q in first] == [(q.prompt_tokens, q.new_tokens) for q in second]
    assert not {question.seed for question in first} & {question.seed for question in second}
    assert [time / 50 for time in slow.arrivals()] == pytest.approx(fast.arrivals())


def test_bounds() -> None:
    assert load(math.inf, requests=4).arrivals() == [0.0] * 4
    assert len(load(10.0, requests=4).arrivals()) == 4
    timed = load(10.0, seconds=2.0).arrivals()
    assert timed == load(10.0, requests=1000).arrivals()[: len(timed)]
    assert timed[-1] < 2.0 <= load(10.0, requests=1000).arrivals()[len(timed)]
    assert load(10.0, requests=3, seconds=1000.0).arrivals() == timed[:3]
    assert load(1e-9, seconds=1.0).arrivals() == []


@pytest.mark.parametrize(
    "bounds",
    [
        {"rate": 1.0},
        {"rate": math.inf, "seconds": 1.0},
        {"rate": 0.0, "requests": 1},
        {"rate": math.nan, "requests": 1},
        {"rate": 1.0, "requests": 0},
        {"rate": 1.0, "seconds": -1.0},
    ],
)
def test_a_load_without_end_or_sense_is_refused(bounds: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"above 0|no end"):
        load(**bounds)


def draws(text: str, count: int, seed: int) -> list[int]:
    lengths, random_numbers = Lengths.parse(text), random.Random(seed)
    return [lengths.draw(random_numbers) for _ in range(count)]


@pytest.mark.parametrize("seed", SEEDS)
def test_lengths(seed: int) -> None:
    assert set(draws("7", 20, seed)) == {7}
    assert set(draws("3:6", 200, seed)) == {3, 4, 5, 6}
    assert set(draws("5:5", 20, seed)) == {5}
    spread = draws("lognormal:200,0.5", 20_000, seed)
    assert min(spread) >= 1
    assert statistics.fmean(spread) == pytest.approx(200, rel=0.02)
    assert statistics.stdev(map(math.log, spread)) == pytest.approx(0.5, rel=0.02)
    assert set(draws("lognormal:40,0", 20, seed)) == {40}


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "many", "1.5", "5:", ":5", "6:5", "0:5", "1:2:3", "lognormal:5", "lognormal:0.5,1", "٣"]
)
def test_what_is_no_length(text: str) -> None:
    with pytest.raises(ValueError, match="length"):
        Lengths.parse(text)


def test_tokens_per_word() -> None:
    of_bytes = TokensPerWord.between((8, 41), (72, 361))
    assert (of_bytes.each, of_bytes.fixed) == (5.0, 1.0)
    assert [of_bytes.words_for(tokens) for tokens in (1, 6, 101)] == [1, 1, 20]
    assert TokensPerWord.between((8, 10), (72, 10)) == TokensPerWord(1.0, 0.0), "words that take no tokens"


def test_words_are_plain_and_prompts_differ_from_the_start() -> None:
    assert len(set(WORDS)) == len(WORDS) > 200
    assert all(word.isascii() and word.isalpha() and word.islower() for word in WORDS)
    texts = [some_words(12, seed) for seed in range(40)]
    assert {len(text.split()) for text in texts} == {12}
    assert len({" ".join(text.split()[:3]) for text in texts}) == 40, "a prefix cache would find nothing"
