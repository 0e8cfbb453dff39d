"""The small models that come with Ostinato, so that it can be tried without downloading anything."""

from pathlib import Path

from ostinato.models.errors import CheckpointError

NAMES = ("gla", "mamba", "rwkv7")


def path(name: str) -> Path:
    """The checkpoint folder of a demo model, in the public layout of its family.

    Raises:
        CheckpointError: there is no demo model of that name.
    """
    if name not in NAMES:
        raise CheckpointError(f"there is no demo model {name!r}; there are {', '.join(NAMES)}")
    return Path(__file__).parent / name
