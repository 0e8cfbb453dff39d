"""The results of `ostinato bench serve` on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ostinato.server.bench.report import LATENCIES, RunReport, Spread, remarks


def rate_text(rate: float | None, *, asked: bool = False) -> str:
    """Requests or tokens per second, to three digits. None: there is none, or if it was asked for, no bound."""
    if rate is None:
        return "inf" if asked else "-"
    return f"{rate:,.0f}" if rate >= 1000 else f"{rate:.3g}"


def seconds_text(seconds: float) -> str:
    """`12.3 ms`, `4.56 s`."""
    return f"{seconds:.3g} s" if seconds >= 0.9995 else f"{seconds * 1e3:.3g} ms"


RATE_COLUMNS = (
    *("asked/s", "sent/s", "completed/s", "requests", "failed", "at once"),
    *("prompt tok/s", "generated tok/s"),
)
LATENCY_COLUMNS = ("", "mean", "p50", "p90", "p99", "max")


def rate_row(report: RunReport) -> tuple[str, ...]:
    """In the order of `RATE_COLUMNS`."""
    return (
        rate_text(report.asked_rate, asked=True),
        rate_text(report.sent_rate),
        rate_text(report.completed_rate),
        str(report.requests),
        str(sum(report.errors.values())),
        str(report.most_at_once),
        rate_text(report.prompt_tokens_per_second),
        rate_text(report.generated_tokens_per_second),
    )


def latency_rows(report: RunReport) -> list[tuple[str, ...]]:
    """In the order of `LATENCY_COLUMNS`."""
    rows = []
    for name, label in LATENCIES.items():
        spread: Spread | None = getattr(report, name)
        values = (spread.mean, spread.p50, spread.p90, spread.p99, spread.max) if spread else ()
        rows.append((label, *(map(seconds_text, values) if values else ["-"] * 5)))
    return rows


def run_title(report: RunReport) -> str:
    return f"at {rate_text(report.asked_rate, asked=True)} requests/s"


def show_runs(reports: list[RunReport], title: str) -> None:
    """One line for each rate, then the latencies of each rate, then what has to be said about it. On stdout."""
    console = Console(highlight=False)
    console.print(_table(title, RATE_COLUMNS, [rate_row(report) for report in reports]))
    for report in reports:
        console.print(_table(run_title(report), LATENCY_COLUMNS, latency_rows(report)))
        for remark in remarks(report):
            console.print(remark, soft_wrap=True, markup=False)


def _table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(title=Text(title), title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        table.add_row(*row)
    return table
