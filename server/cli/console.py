"""What the commands show on the terminal: loading, capacity, and how to send a first request. All on stderr."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ostinato.server.units import format_bytes

if TYPE_CHECKING:
    from ostinato.engine.service import Service

ProgressReport = Callable[[str, int, int], None]


def stderr_console() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def loading_bar() -> Iterator[ProgressReport]:
    """A bar over the bytes of a checkpoint. It appears with the first report, so that the hub's own download bars,
    which come before, have the terminal to themselves.
    """
    columns = (TextColumn("loading"), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    progress = Progress(*columns, console=stderr_console(), transient=True)
    task = progress.add_task("loading", total=None)

    def report(_tensor: str, done: int, total: int) -> None:
        progress.start()
        progress.update(task, completed=done, total=total)

    try:
        yield report
    finally:
        progress.stop()


@contextmanager
def bench_bar() -> Iterator[ProgressReport]:
    """A bar over the repeats of whatever is being measured."""
    columns = (TextColumn("measuring {task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, console=stderr_console(), transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda what, done, total: progress.update(task, description=what, completed=done, total=total)


def show_capacity(service: Service, model_name: str) -> None:
    """What was loaded, and how many requests it can run at once."""
    info = service.info
    table = Table(title=f"Ostinato serves {model_name}", title_justify="left", show_header=False)
    table.add_row("architecture", f"{info.architecture} ({info.family})")
    table.add_row("weights", f"{format_bytes(info.weight_bytes)} in {info.dtype}")
    if info.attention_window is not None:
        table.add_row("attention", f"exact up to {info.attention_window} tokens, then the first few and the last ones")
    if info.encoder_length:
        table.add_row("encoder region", f"the first {info.encoder_length} tokens of a prompt are read at once")
    table.add_row("one state", f"{format_bytes(info.bytes_per_state)} in {info.state_dtype}, however long the text")
    table.add_row("slots", f"{info.slots} sequences at once")
    table.add_row("state memory", format_bytes(info.bytes_per_state * info.slots))
    same = "the same bits in any batch" if info.batch_invariant else "other bits in other batches (--batch-invariant)"
    table.add_row("answers", same)
    table.add_row("tokenizer", "none: token ids only" if service.tokenizer is None else "yes")
    stderr_console().print(table)


def show_ready(url: str, model_name: str, *, takes_text: bool) -> None:
    """The address, and a request that works when pasted."""
    prompt: dict[str, object] = {"prompt": "Once upon a time"} if takes_text else {"prompt": [1, 2, 3]}
    ids: dict[str, object] = {} if takes_text else {"return_token_ids": True}
    body = json.dumps({"model": model_name, **prompt, "max_tokens": 64, "stream": True, **ids})
    quoted = body.replace("'", "'\\''")
    console = stderr_console()
    console.print(f"Ready at {url}  Try:", markup=False)
    console.print(f"  curl -N {url}/v1/completions -H 'content-type: application/json' -d '{quoted}'", markup=False)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Says what the program is doing, on a terminal only, until it is done."""
    with stderr_console().status(what):
        yield


def show_error(error: Exception) -> None:
    """One line, no traceback."""
    show_problem(str(error))


def show_problem(text: str) -> None:
    """One line, however many the text has."""
    line = " ".join(text.split())
    console = stderr_console()
    console.print("error:", style="bold red", end=" ")
    console.print(line, markup=False)
