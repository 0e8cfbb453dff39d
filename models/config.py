"""Typed reading of a checkpoint's config.json, with errors that name the file and the key."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ostinato.models.errors import CheckpointError, UnsupportedModelError

# No option of any model comes near it, and products of two such numbers are still exact enough to compare.
_LARGEST = 10**9
_MOST_PARTS = 4096  # published models have hundreds of layers and of experts
_MOST_SHOWN = 60


class ConfigReader:
    """Reads values by key. A key that is absent or null takes the default; without one it is an error."""

    def __init__(self, values: Mapping[str, Any], source: Path) -> None:
        self._values = values
        self._source = source

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self._values.get(key) is not None

    def integer(self, key: str, default: int | None = None, *, least: int = 1, most: int = _LARGEST) -> int:
        """An integer from `least` to `most`. Raises CheckpointError."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self._error(key, f"{'a positive' if least else 'zero or a positive'} integer up to {most}", value)
        return value

    def parts(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """As `integer`, of things that are made one by one, such as layers. Raises CheckpointError."""
        return self.integer(key, default, least=least, most=_MOST_PARTS)

    def number(self, key: str, default: float | None = None, *, most: float = _LARGEST) -> float:
        """A number of at most `most` either way. Raises CheckpointError."""
        value = self._get(key, default)
        # Compared before it is converted: a long integer is no float. NaN compares false.
        if isinstance(value, bool) or not isinstance(value, int | float) or not -most <= value <= most:
            raise self._error(key, f"a finite number of at most {most} either way", value)
        return float(value)

    def positive(self, key: str, default: float | None = None, *, most: float = _LARGEST) -> float:
        """A number above zero, such as a norm's epsilon. Raises CheckpointError."""
        value = self.number(key, default, most=most)
        if value <= 0:
            raise self._error(key, "above zero", value)
        return value

    def optional_number(self, key: str) -> float | None:
        """As `number`, or None when absent or null. Raises CheckpointError."""
        return self.number(key) if self.has(key) else None

    def interval(self, key: str, low: float, high: float) -> tuple[float, float]:
        """A list of two numbers, in order, the second above zero; either may be infinite. Raises CheckpointError."""
        value = self._get(key, [low, high])
        if not isinstance(value, list) or len(value) != 2 or not all(_is_bound(end) for end in value):
            raise self._error(key, f"a list of two numbers, infinite or at most {_LARGEST} either way", value)
        if not value[0] <= value[1] or value[1] <= 0:
            raise self._error(key, "two numbers in order, the second above zero", value)
        return float(value[0]), float(value[1])

    def flag(self, key: str, default: bool) -> bool:
        """true or false. Raises CheckpointError."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._error(key, "true or false", value)
        return value

    def numbers(self, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
        """A list of as many numbers as the default has, each as `number` says. Raises CheckpointError."""
        value = self._get(key, list(default))
        if not isinstance(value, list) or len(value) != len(default) or not all(_is_bound(each) for each in value):
            raise self._error(key, f"a list of {len(default)} numbers", value)
        return tuple(float(each) for each in value)

    def words(self, key: str, default: Sequence[str], served: Sequence[str]) -> tuple[str, ...]:
        """A list of at least one word, each of them one of `served`. Raises CheckpointError."""
        value = self._get(key, list(default))
        if not isinstance(value, list) or not value or any(word not in served for word in value):
            raise self._error(key, f"a list of {' and '.join(repr(word) for word in served)}", value)
        return tuple(value)

    def section(self, key: str) -> "ConfigReader":
        """A nested object; empty when absent. Raises CheckpointError."""
        value = self._get(key, {})
        if not isinstance(value, dict):
            raise self._error(key, "an object", value)
        return ConfigReader(value, self._source)

    def indices(self, key: str, below: int) -> tuple[int, ...]:
        """A list of different integers from 0 to `below` - 1, in order. Raises CheckpointError."""
        value = self._get(key, None)
        if not isinstance(value, list) or not all(type(index) is int and 0 <= index < below for index in value):
            raise self._error(key, f"a list of integers from 0 to {below - 1}", value)
        return tuple(sorted(set(value)))

    def sections(self, key: str) -> "list[ConfigReader]":
        """A nested object, or a list of such; empty when absent. Raises CheckpointError."""
        value = self._values.get(key) or []
        found = value if isinstance(value, list) else [value]
        if not all(isinstance(each, dict) for each in found):
            raise self._error(key, "an object or a list of objects", value)
        return [ConfigReader(each, self._source) for each in found]

    def fraction_of(self, whole: int, key: str, default: float, *, parts: int = 1) -> int:
        """`whole` times a number, over `parts`, rounded down to a positive integer. Raises CheckpointError."""
        size = int(whole * self.number(key, default) / parts)
        if size <= 0:
            raise CheckpointError(f"{self._source}: {key} is too small: nothing is left of {whole / parts:g}")
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

    def at_most(self, key: str, value: int, most: int) -> None:
        """Raises CheckpointError naming `key` where its value is larger."""
        if value > most:
            raise self._error(key, f"at most {most}", value)

    def only(self, key: str, *served: object) -> None:
        """Refuses an option whose value changes the mathematics in a way that is not implemented.

        The first of `served` is what an absent key means; null counts as absent. Raises UnsupportedModelError.
        """
        value = self._values.get(key)
        if value is not None and value not in served:
            wanted = " or ".join(repr(choice) for choice in served)
            raise UnsupportedModelError(f"{self._source}: {key} = {_shown(value)} is not supported (only {wanted})")

    def _get(self, key: str, default: object) -> Any:
        value = self._values.get(key)
        if value is None:
            value = default
        if value is None:
            raise CheckpointError(f"{self._source}: {key} is missing")
        return value

    def _error(self, key: str, expected: str, value: object) -> CheckpointError:
        return CheckpointError(f"{self._source}: {key} must be {expected}, found {_shown(value)}")


def _is_bound(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -_LARGEST <= value <= _LARGEST or abs(value) == math.inf


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}... ({len(text)} characters)"
