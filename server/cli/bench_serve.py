"""`ostinato bench serve`: load on a running server, and what it makes of it."""

from __future__ import annotations

import json
import math
import random
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ostinato.server.bench.load import Lengths, ServeLoad

if TYPE_CHECKING:
    from ostinato.server.bench.client import Target
    from ostinato.server.bench.run import Progress, Run, ServeBench

DEFAULT_REQUESTS = 100


def parse_rates(text: str) -> tuple[float, ...]:
    """`1,2.5,inf` -> (1.0, 2.5, inf): requests per second, in the order given."""
    try:
        rates = tuple(float(part) for part in text.split(","))
    except ValueError:
        rates = (math.nan,)
    if not all(rate > 0 for rate in rates):
        raise typer.BadParameter(f"{text!r} is not a list of rates above 0: write for example 4, 1,2,4 or inf")
    return rates


def _checked_rates(text: str) -> str:
    parse_rates(text)
    return text


def _checked_lengths(text: str) -> str:
    try:
        Lengths.parse(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return text


def _checked_url(text: str) -> str:
    from ostinato.server.bench.client import api_url

    try:
        return api_url(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _checked_object(text: str) -> str:
    try:
        is_object = isinstance(json.loads(text), dict)
    except ValueError:
        is_object = False
    if not is_object:
        raise typer.BadParameter(f'{text!r} is not a JSON object: write for example {{"temperature": 0}}')
    return text


Length = Annotated[
    str,
    typer.Option(callback=_checked_lengths, metavar="LENGTH", help="128, 32:512 or lognormal:MEAN,SIGMA."),
]


def serve(
    url: Annotated[str, typer.Argument(callback=_checked_url, help="Of a server with OpenAI's API.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Name of the model there.")],
    rate: Annotated[
        str, typer.Option(callback=_checked_rates, metavar="LIST", help="Requests per second; several: one by one.")
    ] = "1",
    requests: Annotated[int | None, typer.Option(min=1, help="At each rate. Default: 100, or by --duration.")] = None,
    duration: Annotated[float | None, typer.Option(min=0.001, help="Seconds in which requests are sent.")] = None,
    prompt_tokens: Length = "128",
    new_tokens: Length = "64",
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Send ignore_eos, so that answers have their full length.")
    ] = False,
    chat: Annotated[bool, typer.Option("--chat", help="Ask /chat/completions, not /completions.")] = False,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Requests at once, at most.")] = None,
    warmup: Annotated[int, typer.Option(min=0, help="Requests before, one by one, which do not count.")] = 4,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds without a byte until a request failed.")] = 300.0,
    seed: Annotated[int | None, typer.Option(help="Of arrivals, lengths and words. Default: a new one.")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="OSTINATO_API_KEY", help="Sent as a bearer token.")] = None,
    usage: Annotated[bool, typer.Option("--usage/--no-usage", help="Ask the server for its counts of tokens.")] = True,
    extra: Annotated[
        str, typer.Option(callback=_checked_object, metavar="JSON", help="More fields of every request.")
    ] = "{}",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots here. Needs matplotlib.")] = None,
) -> None:
    """Send requests to the server at URL as users would, at random moments, and measure how it answers."""
    from ostinato.server.bench.client import Target

    _check(rate, requests, duration, html)
    fields = {**({"ignore_eos": True} if ignore_eos else {}), **json.loads(extra)}
    target = Target(url, model, chat, usage, fields)
    number = DEFAULT_REQUESTS if requests is None and duration is None else requests
    lengths = Lengths.parse(prompt_tokens), Lengths.parse(new_tokens)
    drawn = random.randrange(2**31) if seed is None else seed
    loads = [ServeLoad(one, *lengths, number, duration, drawn, turn) for turn, one in enumerate(parse_rates(rate))]
    bench, runs = measure(target, loads, concurrency, warmup, timeout, api_key)
    results = results_of(bench, runs)
    if html is not None:
        _write_page(html, target, results, runs)
    _show(target, results, runs, as_json=as_json)


def measure(
    target: Target, loads: list[ServeLoad], concurrency: int | None, warmup: int, timeout: float, api_key: str | None
) -> tuple[ServeBench, list[Run]]:
    """One load after the other, with a bar. Raises BenchError: the server refuses what comes before them."""
    import asyncio

    import httpx

    from ostinato.server.bench.run import ServeBench
    from ostinato.server.cli.console import bench_bar

    async def all_loads(report: Progress) -> tuple[ServeBench, list[Run]]:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        async with httpx.AsyncClient(headers=headers, timeout=timeout, limits=limits) as client:
            bench = ServeBench(client, target, concurrency)
            await bench.prepare(loads[0], warmup, report)
            return bench, [await bench.run(load, report) for load in loads]

    with bench_bar() as report:
        return asyncio.run(all_loads(report))


def results_of(bench: ServeBench, runs: list[Run]) -> dict[str, Any]:
    """What `--json` prints."""
    from ostinato.server.bench.report import report_of

    target, load = bench.target, runs[0].load
    return {
        "url": target.url,
        "model": target.model,
        "chat": target.chat,
        "extra": dict(target.extra),
        "prompt_length": load.prompt_tokens.text,
        "new_length": load.new_tokens.text,
        "seed": load.seed,
        "concurrency": bench.concurrency,
        "tokens_per_word": bench.tokens.each,
        "unmeasured": asdict(bench.unmeasured),
        "runs": [asdict(report_of(run)) for run in runs],
    }


def _check(rate: str, requests: int | None, duration: float | None, page: Path | None) -> None:
    """Before anything is measured. Raises BadParameter: no end, or no folder for the page; BenchError: no plots."""
    if requests is None and duration is not None and math.inf in parse_rates(rate):
        raise typer.BadParameter("all requests of rate inf are due at once: say how many with --requests")
    if page is None:
        return
    from ostinato.server.bench.html import check_plots

    check_plots()
    if not page.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {page.parent}", param_hint="--html")


def _write_page(path: Path, target: Target, results: dict[str, Any], runs: list[Run]) -> None:
    from ostinato.server.bench.html import html_page

    settings = {name: value for name, value in results.items() if name != "runs"}
    path.write_text(html_page(f"{target.model} at {target.url}", settings, runs, results), encoding="utf-8")


def _show(target: Target, results: dict[str, Any], runs: list[Run], *, as_json: bool) -> None:
    from ostinato.server.bench.report import report_of
    from ostinato.server.bench.tables import show_runs

    if as_json:
        typer.echo(json.dumps(results, indent=2))
    else:
        show_runs([report_of(run) for run in runs], f"{target.model} at {target.url}, seed {results['seed']}")
