"""What can go wrong while measuring, besides what can go wrong in the engine."""

from __future__ import annotations

from ostinato.engine.errors import OstinatoError


class DataError(OstinatoError):
    """A data set is not there, or its files are not what they should be."""


class AskError(OstinatoError):
    """The server that is asked cannot be reached, or refuses."""


class PlotError(OstinatoError):
    """The drawing cannot be made."""
