"""Ways to spoil files with an inside: safetensors, the zip archives of `torch.save`, contents compressed with zstd."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import zipfile
from random import Random

import zstandard

from tests.fuzz.mutate import LENGTHS, spoil_bytes, spoil_json, spoil_value, write_json

METADATA = "__metadata__"
BOMB = bytes(200 << 20)  # compresses to next to nothing


def spoil_safetensors(random: Random, data: bytes) -> bytes:
    """The header by its structure, also the JSON inside of its metadata; its length; the numbers; or any bytes."""
    if random.randrange(4) == 0:
        return spoil_bytes(random, data)
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    inner = header.get(METADATA, {}).get("ostinato")
    if inner is not None and random.randrange(3):
        header[METADATA]["ostinato"] = write_json(spoil_value(random, json.loads(inner)))
    else:
        header = spoil_value(random, header)
    text = write_json(header).encode()
    if random.randrange(8) == 0:
        body = spoil_bytes(random, body)
    told = len(text) if random.randrange(8) else random.choice(LENGTHS)
    return told.to_bytes(8, "little") + text + body


def spoil_archive(random: Random, data: bytes) -> bytes:
    """Of a zip archive that holds a pickle: the pickle's bytes or numbers, the entries, or any bytes."""
    if random.randrange(4) == 0:
        return spoil_bytes(random, data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at = next(i for i, (name, _) in enumerate(entries) if name.endswith("data.pkl"))
    method = zipfile.ZIP_STORED
    match random.randrange(6):
        case 0:
            entries[at] = entries[at][0], spoil_bytes(random, entries[at][1])
        case 1:
            del entries[random.randrange(len(entries))]
        case 2:
            method = zipfile.ZIP_DEFLATED
        case _:
            entries[at] = entries[at][0], _spoil_numbers(random, entries[at][1])
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return whole.getvalue()


def spoil_compressed(random: Random, data: bytes) -> bytes:
    """The bytes, what was compressed, the announced size, or a bomb."""
    match random.randrange(5):
        case 0 | 1:
            return spoil_bytes(random, data)
        case 2:
            content = zstandard.ZstdDecompressor().decompress(data)
            return zstandard.ZstdCompressor().compress(spoil_safetensors(random, content))
        case 3:
            content = zstandard.ZstdDecompressor().decompress(data)
            announced = random.choice((False, True))
            return zstandard.ZstdCompressor(write_content_size=announced).compress(spoil_bytes(random, content))
        case _:
            return _bomb()


def spoil_record(random: Random, data: bytes) -> bytes:
    return spoil_json(random, data)


_bombs: list[bytes] = []


def _bomb() -> bytes:
    if not _bombs:
        _bombs.append(zstandard.ZstdCompressor().compress(BOMB))
    return _bombs[0]


def _spoil_numbers(random: Random, data: bytes) -> bytes:
    """Puts other numbers into a pickle: sizes, strides, offsets and lengths among them."""
    opcodes = list(pickletools.genops(data))
    starts = [position for _, _, position in opcodes if position is not None]
    ends = [*starts[1:], len(data)]
    numbers = [i for i, (opcode, _, _) in enumerate(opcodes) if opcode.name in ("BININT", "BININT1", "BININT2")]
    chosen = set(random.sample(numbers, min(len(numbers), random.randint(1, 3))))
    pieces = []
    for i in range(len(starts)):
        piece = data[starts[i] : ends[i]]
        pieces.append(_other_number(random, opcodes[i][1]) if i in chosen else piece)
    return b"".join(pieces)


def _other_number(random: Random, value: object) -> bytes:
    assert isinstance(value, int)
    number = random.choice((0, 1, -1, value + 1, value * 2, 10**6, 2**31, 2**40, 2**63 - 1, -(2**63), 2**64))
    encoded = pickle.encode_long(number)
    return b"\x8a" + bytes([len(encoded)]) + encoded  # LONG1
