"""Tokenizers of the `tokenizers` package (`tokenizer.json`), behind the engine's interface."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from ostinato.engine.errors import RequestError, TokenizerError
from ostinato.engine.text.chat_template import Message, render_default
from ostinato.engine.text.config import AddedEntry, TokenizerConfig
from ostinato.engine.text.panics import panics_raised
from ostinato.engine.text.token_bytes import (
    Stage,
    UnsupportedDecoderError,
    apply_stages,
    compile_decoder,
    join_pieces,
    to_utf8,
)

MOST_IDS = 2**24  # the package lists every id that is missing: one of 2^32 would take 16 GiB
LEADS = ("\n", "|", "0")  # characters behind which a text may be encoded as the middle of one
REMEDY = "name another tokenizer with --tokenizer PATH_OR_ID"


class HfTokenizer:
    """A tokenizer of the `tokenizers` package.

    `tokenizer.json` alone decides how text becomes ids, beginning-of-text token included; model-specific
    classes of other packages are not consulted, since they may alter it. Decoding joins the exact bytes of
    the tokens: it equals the package's own for all ids whose bytes are valid UTF-8, and does without
    `clean_up_tokenization_spaces`, which would alter text. (For SentencePiece byte tokens that are invalid,
    the package gives U+FFFD for every byte of the run, valid characters included; here only the invalid part
    is replaced.)

    Args:
        backend: is modified: truncation and padding are switched off, special tokens of `config` are
            declared.
        config: what the files beside it say.
        origin: the file, for messages.

    Raises:
        TokenizerError: `config` and `backend` disagree, or the decoder is of an unknown form.
    """

    def __init__(self, backend: Backend, config: TokenizerConfig, origin: Path) -> None:
        self._backend = backend
        self._config = config
        backend.no_truncation()
        backend.no_padding()
        _declare_added(backend, config, origin)
        _declare_special(backend, config)
        self._stages = _stages(backend, origin)
        self._special = frozenset(i for i, token in backend.get_added_tokens_decoder().items() if token.special)
        self._pieces: dict[tuple[int, bool], bytes] = {}
        self._vocab_size = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
        if self._vocab_size > MOST_IDS:
            raise TokenizerError(f"{origin}: the token id {self._vocab_size - 1} is beyond any vocabulary's")
        self._bos_token_id = _named_id(backend, config, "bos_token", origin)
        self._eos_token_id = _named_id(backend, config, "eos_token", origin)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return self._vocab_size

    @property
    def bos_token_id(self) -> int | None:
        return self._bos_token_id

    @property
    def eos_token_id(self) -> int | None:
        return self._eos_token_id

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 in hex of the `tokenizer.json` that this amounts to."""
        return hashlib.sha256(self._backend.to_str().encode()).hexdigest()

    @property
    def chat_template(self) -> str | None:
        return self._config.template_source

    def encode(self, text: str, *, add_special_tokens: bool = True, continues: bool = False) -> list[int]:
        """Ids of `text`, in which special tokens may be written out.

        A SentencePiece tokenizer puts a space before a text. Where the text `continues` another, it is encoded behind
        a character that does not grow together with it, and what that character gave is cut off.

        Raises:
            RequestError: the text is not Unicode, or not expressible in the vocabulary.
        """
        to_utf8(text)
        if continues and self._opens_with_space:
            for lead in LEADS:
                before, ids = (
                    self._encode(lead, add_special_tokens=False),
                    self._encode(lead + text, add_special_tokens),
                )
                if ids[: len(before)] == before:
                    return ids[len(before) :]
        return self._encode(text, add_special_tokens)

    @functools.cached_property
    def _opens_with_space(self) -> bool:
        """Whether a token reads otherwise at the beginning of a text, because a space was put before it."""
        ids = self._encode("a", add_special_tokens=False)
        return bool(ids) and self.piece(ids[0], first=True) != self.piece(ids[0])

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        try:
            with panics_raised():
                return self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        # The package raises plain Exception, for example where a character has no token.
        except Exception as error:
            raise RequestError(f"the text cannot be tokenized: {error}") from error

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True, continues: bool = False) -> str:
        """Text of `ids`. Ids without a token add nothing."""
        if skip_special_tokens:
            ids = [token_id for token_id in ids if token_id not in self._special]
        return join_pieces(_WithSpecial(self), ids, continues=continues)

    def piece(self, token_id: int, *, first: bool = False) -> bytes:
        """What a token adds to a text: nothing for a special token or an id without a token."""
        return b"" if token_id in self._special else self._bytes(token_id, first=first)

    def token_bytes(self, token_id: int) -> bytes:
        """Exact bytes of a token inside a text; those of its name for a special token."""
        return self._bytes(token_id, first=False)

    def token_text(self, token_id: int) -> str:
        """`token_bytes` as text, with U+FFFD for parts of characters."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def apply_chat_template(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """Prompt text of `messages`, its special tokens written out: encode it with
        `add_special_tokens=False`.

        Raises:
            RequestError: the template, or the default form, does not take these messages; `field` is
                "messages".
        """
        template = self._config.chat_template
        if template is None:
            return self._opening() + render_default(messages, add_generation_prompt=add_generation_prompt)
        return template.render(
            messages, add_generation_prompt=add_generation_prompt, special_tokens=self._config.special_tokens
        )

    def _opening(self) -> str:
        """The beginning-of-text token, written out, if `encode` adds one."""
        added = self.encode("")
        return self._config.special_tokens["bos_token"] if added[:1] == [self._bos_token_id] else ""

    def _bytes(self, token_id: int, *, first: bool) -> bytes:
        key = token_id, first
        if key not in self._pieces:
            in_range = 0 <= token_id < self._vocab_size
            token = self._backend.id_to_token(token_id) if in_range else None
            self._pieces[key] = b"" if token is None else apply_stages(self._stages, token, first=first)
        return self._pieces[key]


class _WithSpecial:
    """The pieces of all tokens, special ones by their names."""

    def __init__(self, tokenizer: HfTokenizer) -> None:
        self._tokenizer = tokenizer

    def piece(self, token_id: int, *, first: bool = False) -> bytes:
        return self._tokenizer._bytes(token_id, first=first)


def _declare_added(backend: Backend, config: TokenizerConfig, origin: Path) -> None:
    """Tokens that only tokenizer_config.json has take the next free ids; these must be the declared ones."""
    known = backend.get_added_tokens_decoder()
    for token_id, entry in sorted(config.added_tokens.items()):
        if token_id not in known or (entry.special and not known[token_id].special):
            backend.add_tokens([_added_token(entry)])
        found = backend.token_to_id(entry.content)
        if found != token_id:
            raise TokenizerError(f"{config.path}: token {entry.content!r} has id {token_id}, but {found} in {origin}")


def _added_token(entry: AddedEntry) -> AddedToken:
    return AddedToken(
        entry.content,
        single_word=entry.single_word,
        lstrip=entry.lstrip,
        rstrip=entry.rstrip,
        normalized=entry.normalized,
        special=entry.special,
    )


def _declare_special(backend: Backend, config: TokenizerConfig) -> None:
    """Special tokens that are only ordinary entries of the vocabulary become special ones, ids unchanged."""
    special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
    named = dict.fromkeys([*config.special_tokens.values(), *config.more_special])
    backend.add_special_tokens(
        [text for text in named if text not in special and backend.token_to_id(text) is not None]
    )


def _stages(backend: Backend, origin: Path) -> tuple[Stage, ...]:
    decoder = backend.decoder
    entry = None if decoder is None else json.loads(decoder.__getstate__())
    try:
        return compile_decoder(entry)
    except UnsupportedDecoderError as error:
        raise TokenizerError(f"{origin}: {error}; {REMEDY}") from error


def _named_id(backend: Backend, config: TokenizerConfig, name: str, origin: Path) -> int | None:
    text = config.special_tokens.get(name)
    if text is None:
        return None
    token_id = backend.token_to_id(text)
    if token_id is None:
        raise TokenizerError(f"{config.path}: {name} {text!r} is not in the vocabulary of {origin}")
    return token_id
