"""Sizes in bytes and times in seconds, as people write them."""

from __future__ import annotations

import re

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE | re.ASCII)
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*([smhd]?)", re.IGNORECASE | re.ASCII)
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_bytes(text: str) -> int:
    """`512M` and `512MB` are 512 * 1000^2 bytes, `512MiB` and `512Mi` 512 * 1024^2; a bare number is bytes.

    Raises:
        ValueError: not a size, or less than one byte.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or (match[3] and not match[2]):
        raise ValueError(f"{text!r} is not a size: write bytes, or for example 512M, 2GB or 1.5GiB")
    size = int(float(match[1]) * (1024 if match[3] else 1000) ** _POWERS[match[2].upper()])
    if size < 1:
        raise ValueError(f"{text!r} is less than one byte")
    return size


def parse_seconds(text: str) -> float:
    """`90s`, `15m`, `12h` and `30d`; a bare number is seconds.

    Raises:
        ValueError: not a time, or none at all.
    """
    match = _TIME.fullmatch(text.strip())
    seconds = 0.0 if match is None else float(match[1]) * _SECONDS[match[2].lower()]
    if seconds <= 0:
        raise ValueError(f"{text!r} is not a time: write seconds, or for example 15m, 12h or 30d")
    return seconds


def format_bytes(size: int) -> str:
    """`1536` -> `1.5 KiB`. Exact below 1 KiB, else to three significant digits."""
    value, units = float(size), ["KiB", "MiB", "GiB", "TiB"]
    if size < 1024:
        return f"{size} B"
    value /= 1024
    while value >= 1023.5 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {units[0]}"
