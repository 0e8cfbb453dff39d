"""What holds for all tests: how workers share the machine, and the table of measured errors at the end."""

import os
from collections import defaultdict
from pathlib import Path

import pytest

FIGURES = ("relative_error", "max_difference")

# Workers of pytest-xdist are as many as there are cores: each starts with one thread, and so does what it starts. Tests
# of threads set their number. It is read when PyTorch is imported, which is later.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of many minutes come first: begun last, they would keep one worker busy while the others have nothing."""
    minutes: dict[Path, float] = defaultdict(float)
    for item in items:
        for mark in item.iter_markers("long"):
            minutes[item.path] = max(minutes[item.path], mark.kwargs.get("minutes", 0))
    items.sort(key=lambda item: -minutes[item.path])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The figures that tests recorded, whether they passed or not."""
    rows = []
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            figures = dict(getattr(report, "user_properties", ()))
            if figures.keys() >= set(FIGURES) and report.when == "call":
                name = report.nodeid.rpartition("::")[2]
                distinct = f"{figures['distinct_tokens']:6d}" if "distinct_tokens" in figures else " " * 6
                rows.append("  ".join([*(f"{figures[figure]:8.1e}" for figure in FIGURES), distinct, name]))
    if rows:
        terminalreporter.section("measured against independent implementations")
        terminalreporter.write_line(
            "relative: norm of the logits' difference over their norm; distinct: of the 64 tokens"
        )
        terminalreporter.write_line("relative  max diff  distinct  test")
        for row in rows:
            terminalreporter.write_line(row)
