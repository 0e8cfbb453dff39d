"""The results as tables on the terminal: `tokens` were read, `kept` came from states instead."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from ostinato.server.evals.run import Comparison, Point, Report

NUMBERS = ("facts", "read", "right %", "95 %", "guess", "tokens", "kept", "s")


def show(report: Report, title: str) -> None:
    console = Console(highlight=False, markup=False)
    table = Table("task", title=title, title_justify="left")
    for name in NUMBERS:
        table.add_column(name, justify="right")
    for point in report.points:
        table.add_row(point.task, *_cells(point))
    console.print(table)
    if report.comparisons:
        console.print(_differences(report.comparisons))


def _cells(point: Point) -> list[str]:
    return [
        _number(point.facts),
        f"{point.repeat} x",
        f"{100 * point.accuracy:.1f}",
        f"{100 * point.low:.1f} to {100 * point.high:.1f}",
        "" if point.chance is None else f"{100 * point.chance:.1f}",
        f"{point.read_tokens:,}",
        f"{point.cached_tokens:,}",
        f"{point.seconds:.1f}",
    ]


def _differences(comparisons: list[Comparison]) -> Table:
    """In percentage points."""
    table = Table("task", title="Differences, of the same questions", title_justify="left")
    table.add_column("facts", justify="right")
    table.add_column("what")
    for name in ("points", "95 %", "won", "lost", "p"):
        table.add_column(name, justify="right")
    for each in comparisons:
        interval = f"{100 * each.low:+.1f} to {100 * each.high:+.1f}"
        numbers = (f"{100 * each.difference:+.1f}", interval, str(each.won), str(each.lost), f"{each.p_value:.2g}")
        table.add_row(each.task, _number(each.facts), each.what, *numbers)
    return table


def _number(facts: int | None) -> str:
    return "" if facts is None else str(facts)
