"""Oracle processes shared by the tests of a session."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

from tests.oracles.client import Oracle


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
