"""The results of `ostinato bench serve` as one HTML file that needs no other: tables, plots as SVG, and the JSON."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping
from html import escape
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy

from ostinato.server.bench.client import BenchError
from ostinato.server.bench.report import LATENCIES, RunReport, Samples, remarks, report_of
from ostinato.server.bench.run import Run
from ostinato.server.bench.tables import LATENCY_COLUMNS, RATE_COLUMNS, latency_rows, rate_row, run_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Nothing is fetched, whatever a server's complaint or a model's name may hold.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .2rem .8rem; border-bottom: 1px solid #ccc; text-align: right; white-space: pre; }
th:first-child, td:first-child { text-align: left; }
svg { width: 100%; height: auto; }
"""
PANEL_INCHES = (5.5, 3.4)


def check_plots() -> None:
    """Raises BenchError: what draws the plots is not installed."""
    try:
        import matplotlib  # noqa: F401 (only whether it is there)
    except ImportError:
        raise BenchError("--html needs matplotlib: pip install 'ostinato[plot]'") from None


def html_page(title: str, settings: Mapping[str, object], runs: list[Run], data: object) -> str:
    """settings: what was asked for, by name; data: the JSON, which the page carries along."""
    reports = [report_of(run) for run in runs]
    whole = json.dumps(data).replace("<", "\\u003c")  # the end of the element must not be in it
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        f'<head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>",
        f"<body><h1>{escape(title)}</h1>",
        _table(("setting", "value"), [(name, str(value)) for name, value in settings.items()]),
        _table(RATE_COLUMNS, [rate_row(report) for report in reports]),
        *(_latencies(report) for report in reports),
        plots(runs, reports),
        f'<script type="application/json" id="results">{whole}</script>',
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    def row(cells: tuple[str, ...], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "<table>" + row(head, "th") + "".join(row(cells, "td") for cells in rows) + "</table>"


def _latencies(report: RunReport) -> str:
    said = "".join(f"<p>{escape(remark)}</p>" for remark in remarks(report))
    return f"<h2>{escape(run_title(report))}</h2>" + _table(LATENCY_COLUMNS, latency_rows(report)) + said


def plots(runs: list[Run], reports: list[RunReport]) -> str:
    """All plots as one SVG element: distributions, how the runs went, and what several finite rates made of it."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    panels: list[Callable[[Axes], None]] = [
        lambda axes: _distributions(axes, runs, "first_token"),
        lambda axes: _distributions(axes, runs, "inter_token"),
        lambda axes: _distributions(axes, runs, "end_to_end"),
        lambda axes: _at_once(axes, runs),
    ]
    finite = [(report.asked_rate, report) for report in reports if report.asked_rate is not None]
    bounded = sorted(finite, key=lambda pair: pair[0])
    if len({rate for rate, _ in bounded}) > 1:
        panels += [lambda axes: _latency_by_rate(axes, bounded), lambda axes: _throughput_by_rate(axes, bounded)]
    rows = math.ceil(len(panels) / 2)
    figure = Figure(figsize=(2 * PANEL_INCHES[0], rows * PANEL_INCHES[1]), layout="constrained")
    for number, panel in enumerate(panels):
        panel(figure.add_subplot(rows, 2, number + 1))
    text = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "ostinato"}):  # text stays text; the same bytes each time
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def _label(run: Run) -> str:
    return f"{run.load.rate:g} requests/s"


def _distributions(axes: Axes, runs: list[Run], latency: str) -> None:
    """The share of requests, or of gaps between tokens, that took at most so long."""
    for run in runs:
        seconds = numpy.sort(getattr(Samples.of(run), latency))
        axes.step(seconds, numpy.arange(1, len(seconds) + 1) / max(1, len(seconds)), where="post", label=_label(run))
    axes.set(title=LATENCIES[latency], xlabel="seconds", ylabel="share", ylim=(0, 1))
    axes.legend()


def _at_once(axes: Axes, runs: list[Run]) -> None:
    """How many requests were under way."""
    for run in runs:
        changes = sorted(
            [(one.sent - run.start, 1) for one in run.exchanges]
            + [(one.ended - run.start, -1) for one in run.exchanges]
        )
        counts = list(accumulate(change for _, change in changes))
        axes.step([time for time, _ in changes], counts, where="post", label=_label(run))
    axes.set(title="requests at once", xlabel="seconds since the start", ylim=(0, None))
    axes.legend()


def _latency_by_rate(axes: Axes, reports: list[tuple[float, RunReport]]) -> None:
    for quantile in ("p50", "p99"):
        points = [(rate, getattr(report.first_token, quantile)) for rate, report in reports if report.first_token]
        axes.plot([rate for rate, _ in points], [seconds for _, seconds in points], marker="o", label=quantile)
    axes.set(title="time to first token by rate", xlabel="requests/s asked", ylabel="seconds", ylim=(0, None))
    axes.legend()


def _throughput_by_rate(axes: Axes, reports: list[tuple[float, RunReport]]) -> None:
    axes.plot([rate for rate, _ in reports], [report.completed_rate for _, report in reports], marker="o")
    axes.set(title="completed by rate", xlabel="requests/s asked", ylabel="requests/s completed", ylim=(0, None))
