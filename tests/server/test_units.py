from __future__ import annotations

import pytest

from ostinato.server.units import format_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("1000", 1000),
        ("512M", 512_000_000),
        ("512MB", 512_000_000),
        ("2g", 2_000_000_000),
        ("1GiB", 2**30),
        ("1.5 GiB", 3 * 2**29),
        (" 8Mi ", 8 * 2**20),
        ("3TB", 3 * 10**12),
    ],
)
def test_sizes_are_read_as_written(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "M", "-1", "1.2.3M", "5 apples", "1iB", "0", "0.4", "1e9", "\u0663M", "inf", "nan"]
)
def test_what_is_no_size_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a size|less than one byte"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1536, "1.50 KiB"),
        (10 * 2**20, "10.0 MiB"),
        (2**40, "1.00 TiB"),
    ],
)
def test_sizes_are_shown_to_three_digits(size: int, text: str) -> None:
    assert format_bytes(size) == text
