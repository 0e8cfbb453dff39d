"""Typed reading of a checkpoint's config.json, with errors that name the file and the key."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ostinato.models.errors import CheckpointError, UnsupportedModelError


class ConfigReader:
    """Reads values by key. A key that is absent or null takes the default; without one it is an error."""

    def __init__(self, values: Mapping[str, Any], source: Path) -> None:
        self._values = values
        self._source = source

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive integer. Raises CheckpointError."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise CheckpointError(f"{self._source}: {key} must be a positive integer, found {value!r}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number. Raises CheckpointError."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise CheckpointError(f"{self._source}: {key} must be a finite number, found {value!r}")
        return float(value)

    def optional_number(self, key: str) -> float | None:
        """A finite number, or None when absent or null. Raises CheckpointError."""
        return None if self._values.get(key) is None else self.number(key)

    def flag(self, key: str, default: bool) -> bool:
        """true or false. Raises CheckpointError."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise CheckpointError(f"{self._source}: {key} must be true or false, found {value!r}")
        return value

    def section(self, key: str) -> "ConfigReader":
        """A nested object; empty when absent. Raises CheckpointError."""
        value = self._get(key, {})
        if not isinstance(value, dict):
            raise CheckpointError(f"{self._source}: {key} must be an object, found {value!r}")
        return ConfigReader(value, self._source)

    def fraction_of(self, whole: int, key: str, default: float) -> int:
        """`whole` times a number, as a positive integer. Raises CheckpointError."""
        size = int(whole * self.number(key, default))
        if size <= 0:
            raise CheckpointError(f"{self._source}: {key} leaves no dimension of {whole}")
        return size

    def exact_fraction_of(self, whole: int, key: str, default: float) -> int:
        """As `fraction_of`, of a product that is an integer but for its rounding (100 times 0.29)."""
        product = whole * self.number(key, default)
        if round(product) <= 0 or not math.isclose(product, round(product)):
            raise CheckpointError(f"{self._source}: {key} makes {product:g} of {whole}, which is no positive integer")
        return round(product)

    def divide(self, key: str, whole: int, parts: int) -> int:
        """whole / parts where that is even. Raises CheckpointError naming `key`."""
        if whole % parts:
            raise CheckpointError(f"{self._source}: {key} is {parts}, which does not divide {whole}")
        return whole // parts

    def only(self, key: str, *served: object) -> None:
        """Refuses an option whose value changes the mathematics in a way that is not implemented.

        The first of `served` is what an absent key means; null counts as absent. Raises UnsupportedModelError.
        """
        value = self._values.get(key)
        if value is not None and value not in served:
            wanted = " or ".join(repr(choice) for choice in served)
            raise UnsupportedModelError(f"{self._source}: {key} = {value!r} is not supported (only {wanted})")

    def _get(self, key: str, default: object) -> Any:
        value = self._values.get(key)
        if value is None:
            value = default
        if value is None:
            raise CheckpointError(f"{self._source}: {key} is missing")
        return value
