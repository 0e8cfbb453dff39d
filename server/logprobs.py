"""Log-probabilities in the two shapes of the OpenAI API.

A token that is no valid text by itself (half a character) is written `bytes:\\xe2\\x80`, one of a model without a
tokenizer `token_id:17`.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ostinato.engine.events import TokenLogprobs
from ostinato.server.replies import ChatTokenLogprob, LegacyLogprobs, TopLogprob

if TYPE_CHECKING:
    from ostinato.engine.text.tokenizer import Tokenizer


class TokenNames:
    """How tokens are written in answers."""

    def __init__(self, tokenizer: Tokenizer | None) -> None:
        self.tokenizer = tokenizer

    def bytes_of(self, token_id: int) -> bytes | None:
        return None if self.tokenizer is None else self.tokenizer.token_bytes(token_id)

    def name(self, token_id: int) -> str:
        raw = self.bytes_of(token_id)
        if raw is None:
            return f"token_id:{token_id}"
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


class LegacyWriter:
    """Writes the logprobs of one choice, piece by piece; the text offset goes on from piece to piece.

    `opens`: the first token begins a text, rather than continuing a prompt (some tokenizers then drop a space).
    """

    def __init__(self, names: TokenNames, *, opens: bool) -> None:
        self.names = names
        self._opens = opens
        self._offset = 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def write(self, ids: Iterable[int], entries: Sequence[TokenLogprobs | None], top: int) -> LegacyLogprobs:
        """`ids`: the tokens; `entries`: theirs, None where nothing predicts the token; `top`: alternatives to list."""
        piece = LegacyLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
        for token_id, entry in zip(ids, entries, strict=True):
            piece.tokens.append(self.names.name(token_id))
            piece.token_logprobs.append(None if entry is None else entry.logprob)
            piece.top_logprobs.append(None if entry is None else self._alternatives(entry, top))
            piece.text_offset.append(self._offset)
            self._offset += self._characters(token_id)
        return piece

    def _characters(self, token_id: int) -> int:
        """How many characters the token completes in the text."""
        if self.names.tokenizer is None:
            return 0
        shown = self.names.tokenizer.piece(token_id, first=self._opens)
        self._opens = self._opens and not shown
        return len(self._utf8.decode(shown))

    def _alternatives(self, entry: TokenLogprobs, top: int) -> dict[str, float]:
        """The `top` best, and the token itself. Of two tokens that read alike the better one stays."""
        found: dict[str, float] = {}
        for token_id, logprob in (*entry.top[:top], (entry.token_id, entry.logprob)):
            found.setdefault(self.names.name(token_id), logprob)
        return found


def join_legacy(pieces: Iterable[LegacyLogprobs]) -> LegacyLogprobs:
    joined = LegacyLogprobs(tokens=[], token_logprobs=[], top_logprobs=[], text_offset=[])
    for piece in pieces:
        joined.tokens.extend(piece.tokens)
        joined.token_logprobs.extend(piece.token_logprobs)
        joined.top_logprobs.extend(piece.top_logprobs)
        joined.text_offset.extend(piece.text_offset)
    return joined


def chat_logprobs(names: TokenNames, entries: Iterable[TokenLogprobs]) -> list[ChatTokenLogprob]:
    return [
        ChatTokenLogprob(
            **_top(names, entry.token_id, entry.logprob).model_dump(),
            top_logprobs=[_top(names, token_id, logprob) for token_id, logprob in entry.top],
        )
        for entry in entries
    ]


def _top(names: TokenNames, token_id: int, logprob: float) -> TopLogprob:
    raw = names.bytes_of(token_id)
    return TopLogprob(token=names.name(token_id), logprob=logprob, bytes=None if raw is None else list(raw))
