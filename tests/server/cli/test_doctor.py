"""`ostinato doctor`: what it prints, and what its exit code says. The figures themselves are no matter here."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ostinato.kernels import native
from ostinato.kernels.backends import CUDADevice
from ostinato.kernels.roofline import Bandwidths
from ostinato.server.cli import gpu_report
from ostinato.server.cli.gpu_report import GPUReport
from tests.server.cli.test_main import ostinato


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


@pytest.mark.parametrize(("built", "reason"), [(None, "built without CUDA"), ("13.0", "no GPU is visible")])
def test_without_a_gpu_there_is_nothing_to_check(
    built: str | None, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = ostinato("doctor", "--gpu", "--output", tmp_path / "gpu.md")
    assert result.exit_code == 1
    assert not result.stdout
    (line,) = filter(None, result.stderr.splitlines())
    assert line.startswith("error: no GPU can be used: ")
    assert reason in line
    assert "nvidia-smi" in line
    assert "https://pytorch.org" in line
    assert not (tmp_path / "gpu.md").exists()


def test_output_needs_a_gpu(tmp_path: Path) -> None:
    result = ostinato("doctor", "--output", tmp_path / "gpu.md")
    assert result.exit_code == 2
    assert "--gpu" in result.stderr


def finding(**changes: object) -> SimpleNamespace:
    """Stands in for `ostinato.kernels.gpu.doctor.Finding`, which only Triton's tests can import."""
    found = {"check": "steps = scan", "case": "conv, real", "dtype": "bfloat16", "error": 2e-6, "bound": 5e-5}
    return SimpleNamespace(**{**found, "failure": None, "passed": True, **changes})


REPORT = GPUReport(
    devices=(CUDADevice("Card A", "9.0", 80 * 2**30),),
    torch="2.99",
    triton="3.99",
    bandwidths=Bandwidths(read=2.9e12, copy=3e12),
    findings=(finding(),),
    timings=(
        SimpleNamespace(case="conv", shape="step of 32", microseconds=12.34, bytes_per_second=2.4e12, fraction=0.8),
    ),
)


def test_the_report_as_markdown() -> None:
    text = REPORT.markdown()
    assert "Card A, capability 9.0, 80.0 GiB; PyTorch 2.99; Triton 3.99." in text
    assert "1 of 1 checks passed" in text
    assert "| steps = scan | conv, real | bfloat16 | 2.0e-06 | 5e-05 | passed |" in text
    assert "reads 2,900 GB/s and copies 3,000 GB/s" in text
    assert "| conv | step of 32 | 12.3 | 2,400 | 80% |" in text


@pytest.mark.parametrize("wrong", [{"error": 1.0}, {"error": None, "failure": "RuntimeError: a | b"}])
def test_a_check_that_failed(wrong: dict[str, object]) -> None:
    report = GPUReport(**{**vars(REPORT), "findings": (finding(), finding(**wrong, passed=False))})
    assert "1 of 2 checks passed" in report.markdown()
    (row,) = [line for line in report.markdown().splitlines() if "FAILED" in line]
    assert row.count("|") == 7, "a bar in a message would end its cell"


@pytest.mark.parametrize(("passed", "code"), [(True, 0), (False, 1)])
def test_the_report_of_a_gpu_is_printed_and_written(
    passed: bool, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    report = GPUReport(**{**vars(REPORT), "findings": (finding(passed=passed),)})
    monkeypatch.setattr(gpu_report, "_why_impossible", lambda found: None)
    monkeypatch.setattr(gpu_report, "examine_cuda", lambda found: report)
    result = ostinato("doctor", "--gpu", "--output", tmp_path / "gpu.md")
    assert result.exit_code == code
    assert (tmp_path / "gpu.md").read_text() == report.markdown()
    assert report.markdown() in result.stdout
    assert ("error: 1 of 1 checks failed" in result.stderr) is not passed
