"""The arithmetic of the roofline by hand, and that what is measured is a rate at all. Nothing here holds a time."""

import pytest
import torch

from ostinato.kernels import roofline
from ostinato.kernels.roofline import Bandwidths, Rates, Work

RATES = Rates(read=100.0, copy=50.0, product=1000.0)


@pytest.mark.parametrize(
    ("work", "seconds"),
    [
        (Work(weight_bytes=200, flop=0, state_bytes=0), 2.0),
        (Work(weight_bytes=0, flop=3000, state_bytes=0), 3.0),
        (Work(weight_bytes=200, flop=3000, state_bytes=0), 3.0),  # the slower of the two
        (Work(weight_bytes=400, flop=3000, state_bytes=0), 4.0),
        (Work(weight_bytes=400, flop=3000, state_bytes=75), 5.5),  # states come on top
        (Work(weight_bytes=0, flop=0, state_bytes=0), 0.0),
    ],
)
def test_seconds(work: Work, seconds: float) -> None:
    assert RATES.seconds(work) == seconds


def test_the_mean_is_taken_of_each_rate() -> None:
    other = Rates(read=90.0, copy=60.0, product=999.0)
    assert RATES.mean(other) == other.mean(RATES) == Rates(read=95.0, copy=(RATES.copy + 60.0) / 2, product=999.5)


def test_bandwidths_count_the_bytes_that_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every try taking two seconds, they are half the bytes read, and half of the bytes read and written."""
    monkeypatch.setattr(roofline, "median_seconds", lambda call, device: call() is None or 2.0)
    assert roofline.measure_bandwidths(torch.device("cpu"), 2**20) == Bandwidths(read=2**19, copy=2**20)


def test_products_stop_growing_when_one_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "PRODUCTS", ((2, 16, 16), (4, 32, 64), (8, 2**40, 2**40)))
    seconds = iter([1e-3, 2e-3, 0.5, 0.04])
    monkeypatch.setattr(roofline, "median_seconds", lambda call, device: next(seconds))
    rate = roofline.measure_product(torch.device("cpu"), torch.float32)
    assert rate == max(2 * 2 * 16 * 16 / 1e-3, 2 * 4 * 32 * 64 / 0.04)


def test_a_product_is_timed_in_both_ways() -> None:
    ours, theirs = roofline._products(6, 32, 16, torch.device("cpu"), torch.float32)
    assert torch.allclose(ours(), theirs(), rtol=1e-5, atol=1e-5)


def test_the_median_try_counts_and_the_first_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 5.0, 5.0, 8.0, 8.0, 12.0])
    monkeypatch.setattr(roofline.time, "perf_counter", lambda: next(clock))
    calls: list[None] = []
    assert roofline.median_seconds(lambda: calls.append(None), torch.device("cpu"), tries=3) == 4.0
    assert len(calls) == 4


def test_rates_of_this_machine_are_positive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofline, "PRODUCTS", ((64, 128, 128),))
    monkeypatch.setattr(roofline, "BUFFER_BYTES", 2**22)
    rates = roofline.measure_rates(torch.device("cpu"), torch.float32)
    assert min(rates.read, rates.copy, rates.product) > 0
