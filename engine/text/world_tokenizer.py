"""RWKV's World tokenizer: greedy longest match over UTF-8 bytes, from the authors' vocabulary file.

The file (`rwkv_vocab_v20230424.txt` in public checkpoints) has one token a line: `id literal length`, where
`literal` is a Python `str` or `bytes` literal and `length` its number of bytes. Id 0 ends a text and is not
in the file.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from ostinato.engine.errors import RequestError, TokenizerError
from ostinato.engine.text.chat_template import Message, render_default
from ostinato.engine.text.config import TokenizerConfig
from ostinato.engine.text.token_bytes import to_utf8

END_ID = 0
_END_NAME = "<|endoftext|>"


class WorldTokenizer:
    """The World tokenizer, behind the engine's tokenizer interface.

    Args:
        path: the vocabulary file.
        config: what the files beside it say. If they give id 0 a name, that name in a text is encoded as 0
            (published chat templates write it); without, no text is. Their `eos_token` and `bos_token` are
            left aside: published ones are wrong for this vocabulary, whose only end is 0.

    Raises:
        TokenizerError: the file is unreadable or a line is malformed; names the file and the line.
    """

    bos_token_id: int | None = None
    eos_token_id: int | None = END_ID

    def __init__(self, path: Path, config: TokenizerConfig | None = None) -> None:
        self._path = path
        self._config = config or TokenizerConfig()
        self._tokens = _read_vocabulary(path)
        self._vocab_size = max(self._tokens) + 1
        self._trie = _Trie(self._tokens)
        end = self._config.added_tokens.get(END_ID)
        self._end_mark = None if end is None else end.content
        self._end_bytes = (self._end_mark or _END_NAME).encode("utf-8")

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return self._vocab_size

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 in hex of the vocabulary, and of the name that stands for 0 in a text."""
        facts = repr((sorted(self._tokens.items()), self._end_mark))
        return hashlib.sha256(facts.encode()).hexdigest()

    @property
    def chat_template(self) -> str | None:
        return self._config.template_source

    def encode(self, text: str, *, add_special_tokens: bool = True, continues: bool = False) -> list[int]:
        """Ids of `text`. This vocabulary has no beginning token and puts no space before a text, so the options change
        nothing.

        Raises:
            RequestError: the text is not Unicode, or no token covers one of its bytes.
        """
        parts = [text] if self._end_mark is None else text.split(self._end_mark)
        ids = self._encode_part(parts[0])
        for part in parts[1:]:
            ids.append(END_ID)
            ids.extend(self._encode_part(part))
        return ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True, continues: bool = False) -> str:
        """Text of `ids`; what is not valid UTF-8 becomes U+FFFD. Ids without a token add nothing.

        A token's bytes do not depend on what is before it, so `continues` changes nothing.
        """
        spell = self.piece if skip_special_tokens else self.token_bytes
        return b"".join([spell(token_id) for token_id in ids]).decode("utf-8", errors="replace")

    def piece(self, token_id: int, *, first: bool = False) -> bytes:
        """What a token adds to a text: nothing for the end token or an id without a token."""
        return self._tokens.get(token_id, b"")

    def token_bytes(self, token_id: int) -> bytes:
        """Exact bytes of a token; those of its name for the end token."""
        return self._end_bytes if token_id == END_ID else self.piece(token_id)

    def token_text(self, token_id: int) -> str:
        """`token_bytes` as text, with U+FFFD for parts of characters."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def apply_chat_template(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """Prompt text of `messages`.

        Raises:
            RequestError: the template, or the default form, does not take these messages; `field` is
                "messages".
        """
        template = self._config.chat_template
        if template is None:
            return render_default(messages, add_generation_prompt=add_generation_prompt)
        return template.render(
            messages, add_generation_prompt=add_generation_prompt, special_tokens=self._config.special_tokens
        )

    def _encode_part(self, text: str) -> list[int]:
        data = to_utf8(text)
        ids: list[int] = []
        position = 0
        while position < len(data):
            token_id, position = self._trie.longest(data, position)
            if token_id is None:
                byte = f"0x{data[position]:02X}"
                raise RequestError(f"the text cannot be tokenized: {self._path.name} has no token for byte {byte}")
            ids.append(token_id)
        return ids


class _Trie:
    """All prefixes of all tokens as states; `state * 256 + byte` leads to the next one.

    One flat dictionary instead of one node object a prefix: a fifth of the memory, and no attribute look-ups.
    """

    def __init__(self, tokens: Mapping[int, bytes]) -> None:
        self._next: dict[int, int] = {}
        self._token_at: dict[int, int] = {}
        for token_id, token in tokens.items():
            self._token_at[self._add_path(token)] = token_id

    def longest(self, data: bytes, position: int) -> tuple[int | None, int]:
        """The longest token at `position`, and the position after it; (None, position) if there is none."""
        follow, token_at = self._next.get, self._token_at
        state = 0
        best, best_end = None, position
        for end in range(position, len(data)):
            following = follow(state << 8 | data[end])
            if following is None:
                break
            state = following
            if state in token_at:
                best, best_end = token_at[state], end + 1
        return best, best_end

    def _add_path(self, token: bytes) -> int:
        state = 0
        for byte in token:
            state = self._next.setdefault(state << 8 | byte, len(self._next) + 1)
        return state


def _read_vocabulary(path: Path) -> dict[int, bytes]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path}: not readable as an RWKV vocabulary: {error}") from error
    if lines[-1] == "":
        lines.pop()
    tokens: dict[int, bytes] = {}
    seen: dict[bytes, int] = {}
    for number, line in enumerate(lines, start=1):
        try:
            token_id, token = _parse_line(line)
            _check_new(token_id, token, tokens, seen)
        except ValueError as error:
            raise TokenizerError(f"{path}, line {number}: {error}") from error
        tokens[token_id], seen[token] = token, token_id
    if not tokens:
        raise TokenizerError(f"{path}: an RWKV vocabulary expected, but the file is empty")
    return tokens


def _parse_line(line: str) -> tuple[int, bytes]:
    head, _, rest = line.partition(" ")
    literal, _, tail = rest.rpartition(" ")
    if not (_is_number(head) and _is_number(tail)):
        raise ValueError(f"`id literal length` expected, got {line[:80]!r}")
    token = _parse_literal(literal)
    if len(token) != int(tail):
        raise ValueError(f"the token has {len(token)} bytes, not {tail}")
    return int(head), token


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9


def _parse_literal(literal: str) -> bytes:
    try:
        value = ast.literal_eval(literal.strip())
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"not a Python literal: {literal[:80]!r}") from error
    if not isinstance(value, str | bytes) or not value:
        raise ValueError(f"a non-empty str or bytes literal expected, got {literal[:80]!r}")
    # A str literal may hold a lone surrogate; UnicodeEncodeError is a ValueError.
    return value.encode("utf-8") if isinstance(value, str) else value


def _check_new(token_id: int, token: bytes, tokens: Mapping[int, bytes], seen: Mapping[bytes, int]) -> None:
    if token_id == END_ID:
        raise ValueError("id 0 is the end of text and must not be in the file")
    if token_id in tokens:
        raise ValueError(f"id {token_id} occurs twice")
    if token in seen:
        raise ValueError(f"token {token!r} occurs twice, as {seen[token]} and {token_id}")
