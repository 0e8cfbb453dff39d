"""`ostinato doctor`: what can be used on this machine, and how fast it is."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ostinato.kernels.backends import Backends, CPUBackend
    from ostinato.kernels.roofline import Bandwidths

NOT_WELL = 1
PRODUCTS = {"amx": "our own, with AMX", "onednn": "oneDNN", "plain": "PyTorch's"}


def doctor(
    gpu: Annotated[
        bool, typer.Option("--gpu", help="Run every check and timing of the GPU's kernels instead.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="With --gpu: write the tables to this file, too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show which back ends can be used here, why others cannot, and how fast the machine is.

    The exit code is 0 if models are served exactly here (the same bits whatever the batch), otherwise 1. With --gpu it
    is 0 if every check passed; that takes at most 8 minutes.
    """
    if gpu:
        from ostinato.server.cli.gpu_report import examine_gpu

        raise typer.Exit(examine_gpu(output, as_json=as_json))
    if output is not None:
        raise typer.BadParameter("there is nothing to write without --gpu", param_hint="--output")
    from ostinato.kernels.backends import find_backends
    from ostinato.server.cli.console import show_problem, waiting

    with waiting("looking around"):
        found = find_backends()
    with waiting("measuring memory and matrix products"):
        bandwidths, products = _measure(found)
    problems = found.cpu.problems()
    if as_json:
        typer.echo(json.dumps(_as_object(found, bandwidths, products), indent=2))
    else:
        _show(found, bandwidths, products)
    for problem in problems:
        show_problem(problem)
    if problems:
        raise typer.Exit(NOT_WELL)


def _as_object(found: Backends, bandwidths: Bandwidths, products: dict[str, float]) -> dict[str, object]:
    problems = found.cpu.problems()
    speed = {
        "read_bytes_per_second": bandwidths.read,
        "copy_bytes_per_second": bandwidths.copy,
        "product_flop_per_second": products,
    }
    return {"exact": not problems, "problems": problems, **asdict(found), "speed": speed}


def _measure(found: Backends) -> tuple[Bandwidths, dict[str, float]]:
    import torch

    from ostinato.kernels.roofline import BUFFER_BYTES, measure_bandwidths, measure_product

    cpu = torch.device("cpu")
    products = {name: measure_product(cpu, getattr(torch, name)) for name in found.cpu.exact}
    return measure_bandwidths(cpu, BUFFER_BYTES), products


def _show(found: Backends, bandwidths: Bandwidths, products: dict[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False)
    rows = [("PyTorch", found.torch), *_cpu_rows(found.cpu), *_speed_rows(bandwidths, products), *_gpu_rows(found)]
    for name, value in rows:
        table.add_row(name, value)
    console = Console(highlight=False, markup=False)
    console.print(table)
    if not found.cpu.problems():
        console.print("Models are served exactly here: the same bits, whatever the batch.")


def _cpu_rows(cpu: CPUBackend) -> list[tuple[str, str]]:
    return [
        ("CPU threads", f"{cpu.threads}, {'OpenMP' if cpu.openmp else 'without OpenMP'}"),
        ("instruction set", cpu.instruction_set + (" and AMX" if cpu.amx else "")),
        ("C++ compiler", cpu.compiler or "none"),
        ("C++ operators", cpu.library or "none: the reference kernels run instead"),
        ("kernels in use", cpu.kernels),
        ("kernel cache", cpu.kernel_cache),
        ("oneDNN", "yes" if cpu.onednn else "no"),
        *(
            (f"projections in {dtype}", f"{PRODUCTS[cpu.products[dtype]]}, {'exact' if exact else 'not exact'}")
            for dtype, exact in cpu.exact.items()
        ),
    ]


def _speed_rows(bandwidths: Bandwidths, products: dict[str, float]) -> list[tuple[str, str]]:
    return [
        ("memory read", f"{bandwidths.read / 1e9:.1f} GB/s"),
        ("memory copy", f"{bandwidths.copy / 1e9:.1f} GB/s, read and written"),
        *((f"products in {dtype}", f"{rate / 1e9:,.0f} GFLOP/s") for dtype, rate in products.items()),
    ]


def _gpu_rows(found: Backends) -> list[tuple[str, str]]:
    from ostinato.server.units import format_bytes

    devices = [f"{each.name}, capability {each.capability}, {format_bytes(each.memory)}" for each in found.devices]
    return [
        ("GPU", "\n".join(devices) or f"none: {found.cuda_missing}"),
        ("Triton", found.triton.version or f"none: {found.triton.missing}"),
    ]
