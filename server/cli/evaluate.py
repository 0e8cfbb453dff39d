"""`ostinato eval recall`: how well a model finds again what it has read, read once or several times."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ostinato.engine.config import DTypeName, EngineConfig
from ostinato.server.cli import options as opt
from ostinato.server.evals.question import FORMS

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from ostinato.server.evals.asking import Server
    from ostinato.server.evals.run import Plan, Report

LEAST_QUEUE = 256
OF_THIS_PROCESS = ("model", "device", "dtype", "tokenizer", "threads")
OF_A_SERVER = ("api_model", "api_key")

evaluate = typer.Typer(help="Measure how good a model's answers are.", no_args_is_help=True)


@evaluate.callback()
def _keep_subcommands() -> None:
    """Measure how good a model's answers are."""  # typer makes a lone sub-command the command itself otherwise


def parse_numbers(text: str) -> list[int]:
    """`1,2,4` -> [1, 2, 4]: numbers from one on, each of them once, in order."""
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of numbers: write for example 1,2,4") from None
    if min(numbers) < 1 or len(set(numbers)) < len(numbers):
        raise typer.BadParameter(f"numbers from 1 on, each of them once, got {text}")
    return sorted(numbers)


def _numbers(text: str) -> str:
    parse_numbers(text)
    return text


def _repeats(text: str) -> str:
    from ostinato.server.repeat_protocol import MAX_TIMES

    if max(parse_numbers(text)) > MAX_TIMES:
        raise typer.BadParameter(f"a context can be read {MAX_TIMES} times at most, got {text}")
    return text


def _form(name: str) -> str:
    if name not in FORMS:
        raise typer.BadParameter(f"must be one of {', '.join(FORMS)}, got {name!r}")
    return name


@dataclass(frozen=True, slots=True)
class Asked:
    """Who is asked: a server at `url`, or `model` in this process."""

    name: str
    url: str | None
    api_model: str | None
    api_key: str | None
    engine: EngineConfig | None

    def server(self) -> AbstractAsyncContextManager[Server]:
        """Loads the model, if it is to run here."""
        from ostinato.server.evals.asking import own_server, running_server

        if self.url is not None:
            return running_server(self.url, self.api_model, self.api_key)
        from ostinato.engine.loading import load_service
        from ostinato.server.cli.console import loading_bar

        assert self.engine is not None
        with loading_bar() as report:
            service = load_service(self.engine, progress=report)
        return own_server(service, self.engine, opt.api_name(self.name))


@evaluate.command()
def recall(
    ctx: typer.Context,
    model: opt.Model = opt.DEMO,
    url: Annotated[
        str | None, typer.Option(help="Ask this Ostinato server instead, for example http://127.0.0.1:8000/v1.")
    ] = None,
    api_model: Annotated[
        str | None, typer.Option("--model", help="With --url: the model's name there. Default: the one it serves.")
    ] = None,
    api_key: Annotated[str | None, typer.Option(help="With --url: sent as a bearer token.")] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(help="May be repeated. Default: all that need no data. Others: fda, swde, nq-512, squad, ..."),
    ] = None,
    repeat: Annotated[
        str, typer.Option(callback=_repeats, metavar="LIST", help="How often each context is read.")
    ] = "1,2",
    form: Annotated[
        str, typer.Option(callback=_form, help="Of a second reading: qccq, cqcq, ccq (c: context, q: question).")
    ] = "qccq",
    facts: Annotated[
        str, typer.Option(callback=_numbers, metavar="LIST", help="In a context, for tasks that need no data.")
    ] = "2,4,8,16",
    questions: Annotated[int, typer.Option(min=1, help="For each task and number of facts.")] = 500,
    seed: Annotated[int, typer.Option(help="The same seed asks the same questions.")] = 0,
    data: Annotated[Path | None, typer.Option(help="Folder with published data sets. Default: the hub.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Questions under way at once.")] = 32,
    cache_prompt: Annotated[
        bool, typer.Option("--cache-prompt", help="Begin from states that earlier questions left, where there are any.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write the JSON object to this file, too.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw a picture, .png or .svg. Needs matplotlib.")] = None,
    device: opt.Device = "cpu",
    dtype: opt.DType = "auto",
    tokenizer: opt.TokenizerPath = None,
    threads: opt.Threads = None,
) -> None:
    """Ask MODEL, or a running server, to find again what it has read, each context once or several times."""
    _refuse_mixture(ctx, with_server=url is not None)
    from ostinato.server.evals.plot import check_can_plot
    from ostinato.server.evals.run import Plan
    from ostinato.server.evals.tasks import WITHOUT_DATA, check_choice, sheets

    names, numbers = list(dict.fromkeys(task or WITHOUT_DATA)), parse_numbers(facts)
    check_choice(names, numbers, form)
    if plot is not None:
        check_can_plot(plot)
    plan = Plan(sheets(names, numbers, questions, seed, data), parse_numbers(repeat), form, concurrency, cache_prompt)
    engine = None
    if url is None:
        engine = EngineConfig(
            opt.model_path(model),
            tokenizer=tokenizer,
            device=device,
            dtype=cast(DTypeName, dtype),  # EngineConfig checks it
            threads=threads,
            max_queue=max(LEAST_QUEUE, concurrency),
            prefix_cache=None if cache_prompt else 0,
        )
    name, report = _measure(Asked(model, url, api_model, api_key, engine), plan)
    settings = {"form": form, "seed": seed, "cache_prompt": cache_prompt, "concurrency": concurrency}
    text = json.dumps({"model": name, **settings, **report.as_object()}, indent=2)
    _deliver(report, f"{name}, read again as {form}", text, as_json, output, plot)


def _refuse_mixture(ctx: typer.Context, *, with_server: bool) -> None:
    """An option of the other way to ask is a mistake, not to be passed over."""
    wrong = OF_THIS_PROCESS if with_server else OF_A_SERVER
    for parameter in ctx.command.params:
        source = ctx.get_parameter_source(parameter.name or "")
        if parameter.name in wrong and source is not None and source.name == "COMMANDLINE":
            reason = "the server at --url has its own" if with_server else "is for a server: give its --url"
            raise typer.BadParameter(reason, param_hint=parameter.opts[0])


def _measure(asked: Asked, plan: Plan) -> tuple[str, Report]:
    """The model's name, and the results."""
    from ostinato.server.cli.console import bench_bar
    from ostinato.server.evals.run import measure

    async def run() -> tuple[str, Report]:
        async with asked.server() as server:
            with bench_bar() as progress:
                return server.model, await measure(server, plan, progress)

    return asyncio.run(run())


def _deliver(report: Report, title: str, text: str, as_json: bool, output: Path | None, plot: Path | None) -> None:
    from ostinato.server.evals.plot import draw
    from ostinato.server.evals.report import show

    if as_json:
        typer.echo(text)
    else:
        show(report, title)
    if output is not None:
        output.write_text(text + "\n", encoding="utf-8")
    if plot is not None:
        draw(report.points, title, plot)
