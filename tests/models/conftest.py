"""Oracle processes shared by the tests of a session, and the table of measured errors at its end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from tests.oracles.client import Oracle

FIGURES = ("relative_error", "max_difference")


@pytest.fixture(scope="session")
def oracle() -> Iterator[Callable[[str], Oracle]]:
    """Gives the process of an oracle by its name, a module of `tests.oracles`."""
    with contextlib.ExitStack() as stack:
        running: dict[str, Oracle] = {}

        def start_once(name: str) -> Oracle:
            if name not in running:
                running[name] = stack.enter_context(Oracle(name))
            return running[name]

        yield start_once


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
