"""From tokens to bytes: what one token of a `tokenizer.json` adds to a text.

A `tokenizer.json` describes decoding as a chain of string operations over the whole list of tokens. Every
chain that language models use (byte-level BPE, SentencePiece with and without byte tokens, plain words) is a
function of one token plus whether a text begins with it, so it is compiled here to that form. Text is then
the UTF-8 decoding of joined bytes, which can be done as tokens arrive, and each token's exact bytes are known
even where it holds half a character.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from ostinato.engine.errors import RequestError

Stage = Callable[[bytes, bool], bytes]  # (piece, is it the first of a text) -> piece

_BYTE_TOKEN = re.compile(rb"<0x([0-9A-Fa-f]{2})>")


class UnsupportedDecoderError(ValueError):
    """The decoder of a `tokenizer.json` is not of the form that this module compiles."""


class PieceSource(Protocol):
    """A tokenizer, as far as turning tokens into bytes goes."""

    def piece(self, token_id: int, *, first: bool = False) -> bytes: ...


def to_utf8(text: str) -> bytes:
    """UTF-8 bytes of `text`.

    Raises:
        RequestError: the text holds half of a surrogate pair (JSON can express it, Unicode text cannot).
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise RequestError(f"the text is not Unicode: lone surrogate U+{code:04X} at character {error.start}") from None


def join_pieces(source: PieceSource, ids: Iterable[int], *, continues: bool) -> str:
    """The text of `ids`; what is not valid UTF-8 becomes U+FFFD (one for each maximal invalid part)."""
    first = not continues
    pieces: list[bytes] = []
    for token_id in ids:
        pieces.append(source.piece(token_id, first=first))
        first = first and not source.piece(token_id)
    return b"".join(pieces).decode("utf-8", errors="replace")


@functools.cache
def byte_alphabet() -> Mapping[str, int]:
    """The character that stands for each byte in byte-level BPE vocabularies (Radford et al. 2019, GPT-2's
    encoder).

    Bytes that are printable in Latin-1 stand for themselves; the others, in order, take the characters from
    U+0100.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(0x100)) - set(printable))
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def compile_decoder(decoder: Mapping[str, Any] | None) -> tuple[Stage, ...]:
    """Compile the `decoder` entry of a `tokenizer.json`, in its JSON form.

    Raises:
        UnsupportedDecoderError: a token's bytes would depend on more than the token and its being the first.
    """
    if decoder is None:
        return (_join_with_space,)
    entries = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    stages: list[Stage] = []
    fused = False
    for entry in entries:
        if entry["type"] == "Fuse":
            fused = True
        elif entry["type"] == "Strip":
            stages.extend(_compile_strip(entry, fused=fused))
        else:
            stages.append(_compile_stage(entry))
    return tuple(stages)


def apply_stages(stages: Iterable[Stage], token: str, *, first: bool) -> bytes:
    """Bytes of a token, given as the vocabulary writes it."""
    piece = token.encode("utf-8")
    for stage in stages:
        piece = stage(piece, first)
    return piece


def _compile_stage(entry: Mapping[str, Any]) -> Stage:
    match entry:
        case {"type": "ByteLevel"}:
            return _byte_level
        case {"type": "ByteFallback"}:
            return _byte_fallback
        case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(content)} if pattern:
            return _replace(pattern.encode("utf-8"), content.encode("utf-8"))
        case {"type": "Metaspace", "replacement": str(mark)}:
            return _metaspace(mark.encode("utf-8"), keeps_first=entry.get("prepend_scheme") == "never")
    raise UnsupportedDecoderError(f"decoder {dict(entry)!r} is not supported")


def _compile_strip(entry: Mapping[str, Any], *, fused: bool) -> list[Stage]:
    """Strip after Fuse works on the whole text: `start` leading characters go, and `stop` trailing ones."""
    content, start, stop = entry["content"], entry["start"], entry["stop"]
    if not fused or start > 1 or stop:
        raise UnsupportedDecoderError(f"decoder {dict(entry)!r} is not supported: only one leading character of a text")
    mark = content.encode("utf-8")
    return [lambda piece, first: piece.removeprefix(mark) if first else piece] if start else []


def _join_with_space(piece: bytes, first: bool) -> bytes:
    return piece if first else b" " + piece


def _byte_level(piece: bytes, first: bool) -> bytes:
    """A token with any character outside the alphabet is an added one and stands for itself."""
    alphabet, text = byte_alphabet(), piece.decode("utf-8")
    return bytes(alphabet[char] for char in text) if all(char in alphabet for char in text) else piece


def _byte_fallback(piece: bytes, first: bool) -> bytes:
    match = _BYTE_TOKEN.fullmatch(piece)
    return bytes([int(match[1], 16)]) if match else piece


def _replace(pattern: bytes, content: bytes) -> Stage:
    return lambda piece, first: piece.replace(pattern, content)


def _metaspace(mark: bytes, *, keeps_first: bool) -> Stage:
    return lambda piece, first: piece.replace(mark, b"" if first and not keeps_first else b" ")
