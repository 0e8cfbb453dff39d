"""Errors of loading a model. The whole tree is drawn in `ostinato.engine.errors`."""


class OstinatoError(Exception):
    """Root of all errors that Ostinato raises on purpose."""


class CheckpointError(OstinatoError):
    """The files of a model are missing, truncated, misshapen or inconsistent. The message names the file."""


class UnsupportedModelError(CheckpointError):
    """The checkpoint is readable, but of an architecture or variant that is not served."""
