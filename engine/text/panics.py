"""Panics of the `tokenizers` package, which is written in Rust."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class PanicError(Exception):
    """The package has failed in a way that it did not foresee."""


@contextmanager
def panics_raised() -> Iterator[None]:
    """Raises PanicError for a panic. As it comes it is no Exception, and has no name to catch it by."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise PanicError(f"the tokenizers package fails: {error}") from error
