"""`ostinato doctor`: what it prints, and what its exit code says. The figures themselves are no matter here."""

from __future__ import annotations

import json

import pytest
import torch

from ostinato.kernels import native
from ostinato.kernels.roofline import Bandwidths
from tests.server.test_cli import ostinato


@pytest.fixture(autouse=True)
def _known_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ostinato.kernels.roofline.measure_bandwidths", lambda device, size: Bandwidths(20e9, 30e9))
    monkeypatch.setattr("ostinato.kernels.roofline.measure_product", lambda device, dtype: 4e11 / dtype.itemsize)


def test_a_machine_that_serves_exactly() -> None:
    result = ostinato("doctor")
    assert result.exit_code == 0, result.output
    for words in (torch.__version__, "AVX", "20.0 GB/s", "30.0 GB/s", "100 GFLOP/s", "served exactly"):
        assert words in result.stdout
    assert str(native.cache_folder()) in result.stdout
    assert "error" not in result.stderr


def test_json() -> None:
    result = ostinato("doctor", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["exact"], found["problems"]) == (True, [])
    assert found["cpu"]["exact"]["float32"] is True
    assert found["cpu"]["library"] == native.library_path().name
    assert found["speed"]["read_bytes_per_second"] == 20e9
    assert found["speed"]["copy_bytes_per_second"] == 30e9
    assert found["speed"]["product_flop_per_second"].keys() == found["cpu"]["exact"].keys()
    assert found["speed"]["product_flop_per_second"]["float32"] == 1e11
    assert (found["devices"] == []) is (found["cuda_missing"] is not None)


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_machine_that_does_not(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load", lambda: "no C++ compiler found")
    result = ostinato("doctor", *options)
    assert result.exit_code == 1
    (line,) = filter(None, result.stderr.splitlines())
    assert line == "error: the reference kernels run instead of the C++ operators: no C++ compiler found"
    if options:
        assert json.loads(result.stdout)["problems"] == [line.removeprefix("error: ")]
    else:
        assert "served exactly" not in result.stdout
