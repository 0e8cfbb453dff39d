"""Bytes of tokens and decoding, against the `tokenizers` package's own decoders."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from ostinato.engine.errors import RequestError, TokenizerError
from ostinato.engine.text.config import TokenizerConfig
from ostinato.engine.text.hf_tokenizer import HfTokenizer
from ostinato.engine.text.token_bytes import byte_alphabet, to_utf8
from ostinato.engine.text.tokenizer import Tokenizer, load_tokenizer
from tests.engine.text.tokenizer_samples import (
    BYTE_LEVEL,
    GOLDENS,
    SENTENCEPIECE,
    sentencepiece_like,
    sentencepiece_tokenizer,
    untimed,
)


@functools.cache
def pair(name: str) -> tuple[Tokenizer, Backend]:
    if name in BYTE_LEVEL:
        return load_tokenizer(GOLDENS / name), Backend.from_file(str(GOLDENS / name / "tokenizer.json"))
    return sentencepiece_tokenizer(name), sentencepiece_like(name)


def is_utf8(data: bytes) -> bool:
    return data.decode("utf-8", errors="ignore").encode() == data


def ids_of(backend: Backend, *tokens: str) -> list[int]:
    ids = [backend.token_to_id(token) for token in tokens]
    assert None not in ids
    return [i for i in ids if i is not None]


def with_decoder(decoder: decoders.Decoder | None, vocab: list[str]) -> HfTokenizer:
    backend = Backend(models.BPE({token: i for i, token in enumerate(vocab)}, []))
    if decoder is not None:
        backend.decoder = decoder
    return HfTokenizer(backend, TokenizerConfig(), Path("tokenizer.json"))


def test_byte_alphabet_is_that_of_the_package() -> None:
    assert set(byte_alphabet()) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(byte_alphabet().values()) == list(range(256))


@pytest.mark.parametrize("name", BYTE_LEVEL)
@pytest.mark.parametrize("skip", [True, False])
@untimed
@given(data=st.data())
def test_any_ids_decode_as_the_package_does_byte_level(name: str, skip: bool, data: st.DataObject) -> None:
    tokenizer, backend = pair(name)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3)))
    assert tokenizer.decode(ids, skip_special_tokens=skip) == backend.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("name", SENTENCEPIECE)
@pytest.mark.parametrize("skip", [True, False])
@untimed
@given(data=st.data())
def test_any_valid_ids_decode_as_the_package_does_sentencepiece(name: str, skip: bool, data: st.DataObject) -> None:
    tokenizer, backend = pair(name)
    known = [i for i in range(tokenizer.vocab_size + 3) if is_utf8(tokenizer.token_bytes(i))]
    some_ids = st.lists(st.sampled_from(known), max_size=6)
    some_text = st.text(max_size=6).map(lambda text: backend.encode(text).ids)
    ids = [i for part in data.draw(st.lists(some_ids | some_text, max_size=6)) for i in part]
    assert tokenizer.decode(ids, skip_special_tokens=skip) == backend.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("name", [*BYTE_LEVEL, *SENTENCEPIECE])
@untimed
@given(text=st.text())
def test_token_bytes_join_to_the_text(name: str, text: str) -> None:
    tokenizer, _ = pair(name)
    ids = tokenizer.encode(text, add_special_tokens=False)
    joined = b"".join(tokenizer.token_bytes(i) for i in ids)
    with_mark = joined.removeprefix(b" ") if name in ("llama", "metaspace") else joined
    plain = text.replace("\u2581", " ")
    assert text.encode() == joined or with_mark.decode() in (plain, plain.removeprefix(" "))


def test_byte_tokens_keep_their_bytes() -> None:
    tokenizer, backend = pair("llama")
    ids = ids_of(backend, *(f"<0x{byte:02X}>" for byte in "\u4f60".encode()))
    assert [tokenizer.token_bytes(i) for i in ids] == [b"\xe4", b"\xbd", b"\xa0"]
    assert [tokenizer.token_text(i) for i in ids] == ["\ufffd"] * 3
    assert tokenizer.decode(ids) == "\u4f60"
    assert tokenizer.decode([*ids, ids[0]]) == "\u4f60\ufffd"  # the package gives four U+FFFD


def test_continued_text_keeps_the_leading_space() -> None:
    tokenizer, backend = pair("llama")
    ids = ids_of(backend, "\u2581the", "\u2581r")
    assert tokenizer.decode(ids) == "the r"
    assert tokenizer.decode(ids, continues=True) == " the r"


def test_only_one_leading_space_is_dropped_and_only_at_the_very_beginning() -> None:
    tokenizer, backend = pair("llama")
    (mark,), unknown = ids_of(backend, "\u2581"), tokenizer.vocab_size + 1
    assert tokenizer.decode([unknown, mark, mark]) == " "
    assert tokenizer.decode(ids_of(backend, "\u2581\u2581")) == " "
    assert tokenizer.decode([1, mark], skip_special_tokens=False) == "<s> "


def test_without_decoder_tokens_are_words() -> None:
    tokenizer = with_decoder(None, ["to", "be"])
    assert tokenizer.decode([0, 1, 0]) == "to be to"
    assert tokenizer.decode([0, 1], continues=True) == " to be"


def test_fuse_alone_joins_tokens() -> None:
    assert with_decoder(decoders.Fuse(), ["A", "C"]).decode([0, 1, 0]) == "ACA"


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.WordPiece(),
        decoders.BPEDecoder(),
        decoders.CTC(),
        decoders.Strip(" ", 1, 0),
        decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 0, 1)]),
        decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 2, 0)]),
    ],
    ids=["wordpiece", "bpe-suffix", "ctc", "strip-each", "strip-end", "strip-two"],
)
def test_decoders_that_need_more_than_one_token_are_refused(decoder: decoders.Decoder) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: decoder .* is not supported.*--tokenizer"):
        with_decoder(decoder, ["a"])


def test_half_of_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(RequestError, match=r"lone surrogate U\+D83D at character 2"):
        to_utf8("ab\ud83d")
