"""Ways to spoil bytes and JSON. Every choice is `random`'s, so hypothesis and plain seeds can both make them.

JSON is spoilt by its structure: values are replaced by hostile ones, dropped, doubled, exchanged and nested. Texts that
`json.dumps` cannot write are put in afterwards, see `RAW`.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from random import Random
from typing import Any

Mutator = Callable[[Random, bytes], bytes]

DEPTH = 100_000
RAW = {
    "@deep list@": "[" * DEPTH + "]" * DEPTH,
    "@deep object@": '{"a":' * DEPTH + "1" + "}" * DEPTH,
    "@digits@": "9" * 5000,
    "@large exponent@": "1e999999999",
    "@half a pair@": '"\\ud800"',
    "@minus zero@": "-0",
    "@doubled key@": '{"a":1,"a":[]}',
}
HOSTILE: tuple[Any, ...] = (
    None,
    True,
    False,
    *(0, 1, -1, 2, 255, 65536, 10**6, 10**9, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**400, -(10**400)),
    *(0.0, -0.0, 0.5, 1e-320, 1e30, 1e308, math.nan, math.inf, -math.inf),
    *("", "a", "\0", "\ud800", "\u2028", "\u00b2", "9" * 5000, "../../etc/passwd", "%s{}", "a" * 50_000),
    *([], {}, [[]], [None], {"": None}, [0] * 2000, ["a"] * 2000, {"__float__": "NaN"}),
    *RAW,
)
LENGTHS = (0, 1, 7, 8, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
PIECES = (
    b"\0",
    b"\xff" * 8,
    b"\x80",
    b'"',
    b"{",
    b"[" * 64,
    b"\n",
    b"\r\n",
    b"\xed\xa0\x80",
    b"\xc2\xb2",
    b"NaN",
    b"%00",
)
MOST_EDITS = 4


def spoil_bytes(random: Random, data: bytes) -> bytes:
    """A few edits anywhere: bits, bytes, lengths, cuts, copies."""
    for _ in range(random.randint(1, MOST_EDITS)):
        data = random.choice(_BYTE_EDITS)(random, data)
    return data


def spoil_json(random: Random, data: bytes) -> bytes:
    """A few edits of the value's structure, and now and then of the text."""
    return spoil_text(random, write_json(spoil_value(random, json.loads(data))).encode())


def spoil_text(random: Random, text: bytes) -> bytes:
    """Leaves most as they are, so that the structure is what is tried."""
    return spoil_bytes(random, text) if random.randrange(8) == 0 else text


def spoil_lines(random: Random, data: bytes) -> bytes:
    """Of a text file: lines dropped, doubled, exchanged and spoilt."""
    lines = data.split(b"\n")
    for _ in range(random.randint(1, MOST_EDITS)):
        here, there = random.randrange(len(lines)), random.randrange(len(lines))
        match random.randrange(4):
            case 0:
                lines[here] = spoil_bytes(random, lines[here])
            case 1:
                lines[here] = lines[there]
            case 2:
                lines.insert(here, lines[there])
            case _:
                del lines[here]
                lines = lines or [b""]
    return b"\n".join(lines)


def write_json(value: object) -> str:
    """JSON, with half surrogate pairs as escapes, NaN, and the texts of `RAW` in place of their names."""
    text = json.dumps(value)
    for name, raw in RAW.items():
        text = text.replace(f'"{name}"', raw)
    return text


def spoil_value(random: Random, value: Any) -> Any:
    """A few edits of a JSON value, which is left as it is: the result may share parts with it."""
    root = json.loads(json.dumps([value]))
    for _ in range(random.randint(1, MOST_EDITS)):
        _edit(random, root)
    return root[0] if root else None


def _edit(random: Random, root: list[Any]) -> None:
    container, key = random.choice(_places(root))
    value = container[key]
    match random.randrange(8):
        case 0 | 1 | 2:
            container[key] = copy.deepcopy(random.choice(HOSTILE))  # later edits reach into it
        case 3:
            container[key] = _near(random, value)
        case 4 if container is not root:
            del container[key]
        case 5:
            other, place = random.choice(_places(root))
            container[key] = json.loads(json.dumps(other[place]))
        case 6:
            container[key] = random.choice(([value], {"a": value}, [value, value]))
        case _ if isinstance(container, dict):
            container[random.choice((f"{key}x", "", "\ud800", "9" * 5000, "__proto__", str(2**64)))] = value
        case _:
            container.insert(0, value)


def _near(random: Random, value: Any) -> Any:
    """A value of the same type that is not far away."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return random.choice((value + 1, value - 1, -value, value * 2, value * 1000, float(value % 2**64)))
    if isinstance(value, float):
        return random.choice((value * 10, -value, int(value) if math.isfinite(value) else 0))
    if isinstance(value, str):
        return spoil_bytes(random, value.encode(errors="surrogatepass")).decode(errors="surrogateescape")
    return copy.deepcopy(random.choice(HOSTILE))


def _places(root: list[Any]) -> list[tuple[Any, Any]]:
    """Every container with each of its keys or indices."""
    found: list[tuple[Any, Any]] = []
    left: list[Any] = [root]
    while left:
        container = left.pop()
        keys = list(container) if isinstance(container, dict) else list(range(len(container)))
        found += [(container, key) for key in keys]
        left += [container[key] for key in keys if isinstance(container[key], dict | list)]
    return found or [(root, 0)]


def _flip(random: Random, data: bytes) -> bytes:
    if not data:
        return b"\0"
    spoilt = bytearray(data)
    spoilt[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(spoilt)


def _cut(random: Random, data: bytes) -> bytes:
    return data[: random.randint(0, len(data))]


def _drop(random: Random, data: bytes) -> bytes:
    start = random.randint(0, len(data))
    return data[:start] + data[start + random.choice((1, 2, 8, 64)) :]


def _double(random: Random, data: bytes) -> bytes:
    start = random.randint(0, len(data))
    end = min(len(data), start + random.choice((1, 8, 64, 1024)))
    return data[:end] + data[start:end] * random.choice((1, 2, 100)) + data[end:]


def _insert(random: Random, data: bytes) -> bytes:
    start = random.randint(0, len(data))
    return data[:start] + random.choice(PIECES) + data[start:]


def _lie(random: Random, data: bytes) -> bytes:
    """A length, of four or of eight bytes, where there may be one."""
    start = random.choice((0, random.randint(0, len(data))))
    size = random.choice((4, 8))
    length = random.choice(LENGTHS) % (1 << 8 * size)
    return data[:start] + length.to_bytes(size, random.choice(("little", "big"))) + data[start + size :]


_BYTE_EDITS: tuple[Mutator, ...] = (_flip, _flip, _cut, _drop, _double, _insert, _lie)
