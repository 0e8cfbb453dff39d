"""`ostinato doctor --gpu`: runs the checks and timings of the GPU's kernels, and writes them as Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ostinato.server.units import format_bytes

if TYPE_CHECKING:
    from ostinato.kernels.backends import Backends, CUDADevice
    from ostinato.kernels.gpu.checks import Capture
    from ostinato.kernels.gpu.doctor import Finding
    from ostinato.kernels.gpu.timing import Timing
    from ostinato.kernels.roofline import Bandwidths

WELL, NOT_WELL = 0, 1
CHECK_SECONDS, ALL_SECONDS = 390.0, 450.0  # of the eight minutes; the last check or timing may end a little later


@dataclass(frozen=True)
class GPUReport:
    """All that was found on one GPU."""

    devices: Sequence[CUDADevice]  # the first of them is checked
    torch: str
    triton: str | None
    bandwidths: Bandwidths
    findings: Sequence[Finding]
    timings: Sequence[Timing]

    @property
    def failed(self) -> list[Finding]:
        return [finding for finding in self.findings if not finding.passed]

    def markdown(self) -> str:
        """The machine, then a table of checks, then one of times."""
        names = [f"{each.name}, capability {each.capability}, {format_bytes(each.memory)}" for each in self.devices[:1]]
        passed = len(self.findings) - len(self.failed)
        lines = [
            "# GPU checks",
            "",
            f"{'; '.join([*names, f'PyTorch {self.torch}', f'Triton {self.triton}'])}. "
            "Written by `ostinato doctor --gpu`.",
            "",
            f"{passed} of {len(self.findings)} checks passed. Errors are relative, root mean square.",
            "",
            *_table(("check", "case", "dtype", "error", "at most", ""), map(_finding_row, self.findings)),
            "",
            f"Memory reads {self.bandwidths.read / 1e9:,.0f} GB/s and copies {self.bandwidths.copy / 1e9:,.0f} GB/s, "
            "read and written, measured in the same run. Times are of one call in a captured graph, operands in bf16.",
            "",
            *_table(("case", "shape", "us", "GB/s", "of copying"), map(_timing_row, self.timings)),
        ]
        return "\n".join(lines) + "\n"


def _finding_row(finding: Finding) -> tuple[str, ...]:
    error = "" if finding.error is None else f"{finding.error:.1e}"
    outcome = "passed" if finding.passed else f"FAILED {finding.failure or ''}".strip()
    return finding.check, finding.case, finding.dtype, error, f"{finding.bound:g}", outcome


def _timing_row(timing: Timing) -> tuple[str, ...]:
    rate = f"{timing.bytes_per_second / 1e9:,.0f}"
    return timing.case, timing.shape, f"{timing.microseconds:,.1f}", rate, f"{timing.fraction:.0%}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [header, ["---"] * len(header), *rows]
    return [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in cells]


def examine_gpu(output: Path | None, *, as_json: bool) -> int:
    """Prints the report, writes it to `output`, and returns the exit code: whether every check passed."""
    from ostinato.kernels.backends import find_backends
    from ostinato.server.cli.console import show_problem

    found = find_backends()
    if problem := _why_impossible(found):
        show_problem(problem)
        return NOT_WELL
    report = examine_cuda(found)
    typer.echo(json.dumps(asdict(report), indent=2) if as_json else report.markdown())
    if output is not None:
        output.write_text(report.markdown(), encoding="utf-8")
    if report.failed:
        show_problem(f"{len(report.failed)} of {len(report.findings)} checks failed")
    return NOT_WELL if report.failed else WELL


def _why_impossible(found: Backends) -> str | None:
    if found.cuda_missing is not None:
        return (
            f"no GPU can be used: {found.cuda_missing}. It needs an NVIDIA GPU that nvidia-smi lists, and a build of "
            "PyTorch with CUDA (https://pytorch.org/get-started/locally)"
        )
    if found.triton.missing is not None:
        return f"Triton cannot be used: {found.triton.missing}. Install it: pip install triton"
    return None


def examine_cuda(found: Backends) -> GPUReport:
    """Of the first GPU, with the graphs in which it serves."""
    from ostinato.engine.graphs import CUDACapture

    return run_everything(found, "cuda", CUDACapture())


def run_everything(found: Backends, device: str, capture: Capture) -> GPUReport:
    """All checks and timings on a device that can be used."""
    import torch

    from ostinato.engine.device_check import model_checks
    from ostinato.kernels import roofline
    from ostinato.kernels.gpu.doctor import deadline, examine, timings
    from ostinato.server.cli.console import waiting

    place, check_end, end = torch.device(device), deadline(CHECK_SECONDS), deadline(ALL_SECONDS)
    with waiting("checking the kernels"):
        findings = list(examine(place, capture, check_end))
    with waiting("checking models"):
        findings += [check.run(check_end) for check in model_checks(device, capture)]
    with waiting("measuring"):
        bandwidths = roofline.measure_bandwidths(place, roofline.BUFFER_BYTES)
        times = list(timings(place, bandwidths.copy, capture, end))
    return GPUReport(found.devices, found.torch, found.triton.version, bandwidths, findings, times)
