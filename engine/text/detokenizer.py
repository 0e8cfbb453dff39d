"""Text out of tokens as they arrive: no half characters, and stop strings found across token boundaries."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

from ostinato.engine.text.token_bytes import PieceSource


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What one token added to the visible text, and the stop string that it completed, if any."""

    text: str
    stop: str | None = None


class TextStream:
    """The text of one growing sequence of tokens, in time and memory that do not depend on its length.

    The texts of all `push` calls and of `flush`, joined, are `tokenizer.decode(ids, continues=continues)`,
    cut at the stop string. Two things are held back: the bytes of an unfinished character (at most three),
    and the longest end of the text that a stop string begins with (at most the longest stop string less one
    character). What can never become valid UTF-8 is emitted as U+FFFD at once; an unfinished character at the
    end, by `flush`.

    A stop string hits with the token that completes its last character, if `allow_stop` holds for that token.
    One that is completed without `allow_stop` is ordinary text for good; one that only begins there hits. Of
    several, the one that ends first wins, and of those that end together the longest, so the outcome does not
    depend on how the text is cut into tokens. The text is cut before it, or after it with `include_stop`.

    Args:
        tokenizer: gives each token's bytes. Special tokens have none.
        stop: non-empty strings.
        include_stop: keep the stop string in the text.
        continues: the tokens continue an earlier text (a prompt), so that a SentencePiece tokenizer's first
            token keeps its leading space.
    """

    def __init__(
        self,
        tokenizer: PieceSource,
        stop: Sequence[str] = (),
        include_stop: bool = False,
        *,
        continues: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._matchers = [_StopMatcher(text) for text in stop]
        self._include_stop = include_stop
        self._at_start = not continues
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self._stopped = False

    @property
    def pending(self) -> tuple[str, bytes]:
        """What is held back: text that may begin a stop string, and the bytes of an unfinished character after it."""
        return self._held, self._utf8.getstate()[0]

    def resume(self, held: str, partial: bytes) -> None:
        """Goes on where another stream with the same stop strings was: `pending` is all that it knew.

        A stop string's beginning is never longer than what is held back, so the text before does not matter.
        """
        for char in held:
            self._match(char)
        self._held = held
        self._utf8.decode(partial)

    def push(self, token_id: int, *, allow_stop: bool = True) -> TextDelta:
        """Take in the next token.

        Raises:
            RuntimeError: a stop string was already hit.
        """
        if self._stopped:
            raise RuntimeError("a token was pushed after the stop string")
        new = self._utf8.decode(self._next_piece(token_id))
        if not self._matchers and not self._held:
            return TextDelta(new)
        text = self._held + new
        for end, char in enumerate(new, start=len(self._held) + 1):
            hit = self._match(char)
            if hit is not None and allow_stop:
                return self._cut(text, end, hit)
        visible = len(text) - max((matcher.matched for matcher in self._matchers), default=0)
        self._held = text[visible:]
        return TextDelta(text[:visible])

    def flush(self) -> str:
        """The text still held back, once no more tokens come. A stop string cannot hit here."""
        rest = self._held + self._utf8.decode(b"", final=True)
        self._held = ""
        return rest

    def _next_piece(self, token_id: int) -> bytes:
        piece = self._tokenizer.piece(token_id, first=self._at_start)
        self._at_start = self._at_start and not self._tokenizer.piece(token_id)
        return piece

    def _match(self, char: str) -> str | None:
        """Advance every stop string by one character; the longest of those that it completes."""
        completed = [matcher.stop for matcher in self._matchers if matcher.advance(char)]
        return max(completed, key=len, default=None)

    def _cut(self, text: str, end: int, stop: str) -> TextDelta:
        self._stopped = True
        self._held = ""
        self._utf8.reset()
        return TextDelta(text[: end if self._include_stop else end - len(stop)], stop)


class _StopMatcher:
    """How much of one stop string the text ends with (Knuth, Morris and Pratt 1977).

    `matched` is the length of the longest proper prefix of the stop string that the text seen so far ends
    with.
    """

    __slots__ = ("_borders", "matched", "stop")

    def __init__(self, stop: str) -> None:
        if not stop:
            raise ValueError("stop strings must not be empty")
        self.stop = stop
        self.matched = 0
        self._borders = _borders(stop)

    def advance(self, char: str) -> bool:
        """Take in one character; true when it completes the stop string."""
        self.matched = _extend(self.stop, self._borders, self.matched, char)
        if self.matched < len(self.stop):
            return False
        self.matched = self._borders[-1]
        return True


def _borders(text: str) -> list[int]:
    """Entry n: length of the longest proper prefix of `text[:n]` that is also its end. Entry 0 is unused."""
    borders = [0, 0]
    for char in text[1:]:
        borders.append(_extend(text, borders, borders[-1], char))
    return borders


def _extend(text: str, borders: list[int], matched: int, char: str) -> int:
    """Length of the longest prefix of `text` at the end, when `char` follows `matched` characters of it."""
    while matched and text[matched] != char:
        matched = borders[matched]
    return matched + 1 if text[matched] == char else 0
