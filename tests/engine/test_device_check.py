"""Whether the checks of whole models on a device find what is wrong there; the CPU takes the device's place."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ostinato.engine import device_check
from ostinato.engine.device_check import LOGITS_BOUND, Reader, graph_error, logits_error, split_error
from ostinato.models import demo

MODELS = [demo.path(name) for name in demo.NAMES]


def at_once(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """In place of a graph: runs now, and again when it is replayed."""
    function()
    return function


@pytest.mark.parametrize("path", MODELS, ids=demo.NAMES)
def test_the_cpu_is_right(path: str) -> None:
    assert logits_error(path, "cpu") == 0.0
    assert split_error(path, "cpu") == 0.0
    assert graph_error(path, "cpu", at_once) == 0.0


def scaled(monkeypatch: pytest.MonkeyPatch, factors: Callable[[int, Tensor], float]) -> None:
    """Multiplies the logits of every call by a factor that depends on its number and its tokens."""
    read, calls = Reader.read, iter(range(10_000))
    monkeypatch.setattr(
        Reader, "read", lambda self, slots, tokens: read(self, slots, tokens) * factors(next(calls), tokens)
    )


def test_other_logits_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousandth too large, in all calls of the second model."""
    scaled(monkeypatch, lambda call, tokens: 1.0 if call < 1 + device_check.STEPS else 1.001)
    error = logits_error(MODELS[0], "cpu")
    assert error == pytest.approx(1e-3, rel=1e-2)
    assert error > LOGITS_BOUND


def test_bits_that_depend_on_the_split_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    scaled(monkeypatch, lambda call, tokens: 1.0 if len(tokens) == 2 else 1.0 + 2**-23)
    assert 0.0 < split_error(MODELS[0], "cpu") < 1e-6


def test_a_graph_of_other_memory_is_found() -> None:
    """What a replay gives is what the first run gave: inputs were not read anew."""

    def stale(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        output = function()
        return lambda: output

    assert graph_error(MODELS[0], "cpu", stale) > 0.1


def test_prompt_and_steps_are_read() -> None:
    logits = Reader(MODELS[0], "cpu").read_all()
    assert logits.shape[0] == 2 * (device_check.PROMPT + device_check.STEPS)
    assert torch.isfinite(logits).all()
