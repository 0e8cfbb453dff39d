"""`ostinato bench`: how fast a model runs on this machine, and how fast a server answers."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ostinato.engine.config import DTypeName, EngineConfig
from ostinato.server.cli import options as opt
from ostinato.server.cli.bench_serve import serve

if TYPE_CHECKING:
    from ostinato.engine.bench import OfflineRow

ANY_SHARE = 2**63 - 1  # of the free memory: there are as many slots as the largest batch has sequences

bench = typer.Typer(help="Measure how fast a model runs here, or a server anywhere.", no_args_is_help=True)
bench.command()(serve)


def parse_batches(text: str) -> tuple[int, ...]:
    """`1,8,32` -> (1, 8, 32): distinct numbers from one on, in the order given."""
    try:
        batches = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of batch sizes: write for example 1,8,32") from None
    if min(batches) < 1:
        raise typer.BadParameter(f"a batch has at least one sequence, got {text}")
    if len(set(batches)) < len(batches):
        raise typer.BadParameter(f"a batch size is there twice in {text}")
    return batches


def _checked_batches(text: str) -> str:
    parse_batches(text)
    return text


@bench.command()
def offline(
    model: opt.Model = opt.DEMO,
    batch: Annotated[
        str, typer.Option(callback=_checked_batches, metavar="LIST", help="Batch sizes, separated by commas.")
    ] = "1,8,32",
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Length of every prompt.")] = 128,
    new_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens that every sequence gets while decoding is timed.")
    ] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="Of which the median counts.")] = 3,
    max_step_tokens: Annotated[int, typer.Option(min=2, help="Tokens read in one step.")] = 512,
    device: opt.Device = "cpu",
    dtype: opt.DType = "auto",
    threads: opt.Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list, an object for each batch size.")] = False,
) -> None:
    """Run MODEL in this process: tokens per second, and the share of what the machine can do at most."""
    batches = parse_batches(batch)
    config = EngineConfig(
        opt.model_path(model),
        device=device,
        dtype=cast(DTypeName, dtype),  # EngineConfig checks it
        state_memory=ANY_SHARE,
        max_batch=max(batches),
        max_step_tokens=max_step_tokens,
        max_queue=0,
        threads=threads,
    )
    from ostinato.engine.bench import Load, bench_offline
    from ostinato.engine.loading import load_engine
    from ostinato.server.cli.console import bench_bar, loading_bar

    with loading_bar() as report:
        loaded = load_engine(config, progress=report)
    with bench_bar() as progress:
        rows = bench_offline(loaded, Load(batches, prompt_tokens, new_tokens, repeats), device, progress)
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        _show(model, rows)


def _show(model: str, rows: list[OfflineRow]) -> None:
    from rich.console import Console
    from rich.table import Table

    first = rows[0]
    title = f"{model} in {first.dtype} on {first.device}, {first.threads} threads"
    table = Table(title=title, title_justify="left")
    for column in ("batch", "prefill tok/s", "of roofline", "decode tok/s", "of roofline"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            str(row.batch),
            f"{row.prefill_tokens_per_second:,.0f}",
            f"{row.prefill_roofline_fraction:.0%}",
            f"{row.decode_tokens_per_second:,.1f}",
            f"{row.decode_roofline_fraction:.0%}",
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"This machine reads {first.read_bytes_per_second / 1e9:.1f} GB/s, "
        f"copies {first.copy_bytes_per_second / 1e9:.1f} GB/s "
        f"and multiplies {first.product_flop_per_second / 1e9:,.0f} GFLOP/s in {first.dtype}.",
        soft_wrap=True,
    )
