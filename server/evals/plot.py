"""Drawing accuracy over the number of facts, a panel for each task and a line for each number of readings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ostinato.server.evals.errors import PlotError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ostinato.server.evals.run import Point

SUFFIXES = (".png", ".svg")
COLUMNS = 3
PANEL_INCHES = 3.2, 2.6


def check_can_plot(path: Path) -> None:
    """Raises PlotError: matplotlib is missing, or the file's name ends in something else than .png or .svg."""
    if path.suffix.lower() not in SUFFIXES:
        raise PlotError(f"{path}: a plot is a .png or .svg file")
    try:
        import matplotlib  # noqa: F401  (only whether it is there)
    except ImportError as error:
        raise PlotError("drawing needs matplotlib: pip install 'ostinato[plot]'") from error


def draw(points: Sequence[Point], title: str, path: Path) -> None:
    """Writes the picture. Whiskers are 95 % intervals, the dotted line is guessing. Raises PlotError."""
    check_can_plot(path)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(point.task for point in points))
    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    with rc_context({"svg.hashsalt": "ostinato", "svg.fonttype": "none"}):  # the same points make the same file
        figure = Figure((PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows + 0.4), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).flat
        for name, panel in zip(names, panels, strict=False):
            _draw_task(panel, name, [point for point in points if point.task == name])
        for panel in figure.axes[len(names) :]:
            panel.remove()
        figure.suptitle(title, fontsize="medium")
        figure.axes[0].legend(frameon=False, fontsize="small")
        try:
            figure.savefig(path, metadata={"Date": None} if path.suffix.lower() == ".svg" else None, dpi=120)
        except OSError as error:
            raise PlotError(f"{path} cannot be written: {error.strerror}") from error


def _draw_task(panel: Axes, name: str, points: Sequence[Point]) -> None:
    """Over the facts; a task without facts has its points over the number of readings."""
    sized = points[0].facts is not None
    panel.set_title(name, fontsize="small")
    panel.set_ylim(-0.03, 1.03)
    panel.grid(alpha=0.3)
    if sized:
        panel.set_xscale("log", base=2)
    panel.set_xlabel("facts" if sized else "read", fontsize="small")
    for times in dict.fromkeys(point.repeat for point in points):
        line = [point for point in points if point.repeat == times]
        whiskers = [
            [point.accuracy - point.low for point in line],
            [point.high - point.accuracy for point in line],
        ]
        panel.errorbar(
            [float(point.facts or point.repeat) for point in line],
            [point.accuracy for point in line],
            yerr=whiskers,
            label=f"read {times} x",
            marker="o",
            markersize=3,
            capsize=2,
            linewidth=1,
        )
    guessed = {point.facts: point.chance for point in points if point.facts is not None and point.chance is not None}
    if guessed:
        panel.plot(list(guessed), list(guessed.values()), ":", color="grey", label="guessing")
    _name_ticks(panel, sorted({point.facts or point.repeat for point in points}))


def _name_ticks(panel: Axes, numbers: list[int]) -> None:
    panel.set_xticks(numbers, [str(number) for number in numbers])
    panel.minorticks_off()
    panel.tick_params(labelsize="small")
