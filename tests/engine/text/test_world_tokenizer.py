"""The World tokenizer, against the `rwkv` package's own and the goldens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rwkv.rwkv_tokenizer import TRIE_TOKENIZER  # type: ignore[import-untyped]  # ships no types

from ostinato.engine.errors import RequestError, TokenizerError
from ostinato.engine.text.config import AddedEntry, TokenizerConfig
from ostinato.engine.text.tokenizer import load_tokenizer
from ostinato.engine.text.world_tokenizer import WorldTokenizer
from tests.engine.text.tokenizer_samples import GOLDENS, WORLD, WORLD_VOCABULARY, golden_json, untimed


@pytest.fixture(scope="module")
def oracle() -> Any:
    return TRIE_TOKENIZER(str(WORLD_VOCABULARY))


@pytest.fixture(scope="module")
def world() -> WorldTokenizer:
    return WorldTokenizer(WORLD_VOCABULARY)


def vocabulary(folder: Path, *lines: str) -> Path:
    path = folder / "rwkv_vocab_test.txt"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_vocabulary_is_read_as_the_package_reads_it(world: WorldTokenizer, oracle: Any) -> None:
    assert {i: world.token_bytes(i) for i in range(1, world.vocab_size)} == oracle.idx2token
    assert world.vocab_size == 65530


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Hello, world!", [33155, 45, 40213, 34]),
        ("\n\nUser: hi\n\nAssistant:", [261, 24281, 59, 4571, 261, 5585, 41693, 59]),
        ("\u4f60\u597d", [10464, 11685]),
        ("", []),
    ],
)
def test_published_samples(world: WorldTokenizer, text: str, ids: list[int]) -> None:
    assert world.encode(text) == ids
    assert world.decode(ids) == text


@untimed
@given(text=st.text())
def test_encodes_any_text_as_the_package_does(world: WorldTokenizer, oracle: Any, text: str) -> None:
    ids = world.encode(text)
    assert ids == oracle.encode(text)
    assert world.decode(ids) == text


@untimed
@given(text=st.text(alphabet=" -=0a\n\u4e00\u597d\U0001f642", max_size=400))
def test_encodes_repetitive_text_as_the_package_does(world: WorldTokenizer, oracle: Any, text: str) -> None:
    assert world.encode(text) == oracle.encode(text)


@untimed
@given(ids=st.lists(st.integers(1, 65529)))
def test_decodes_any_ids_as_the_package_does(world: WorldTokenizer, oracle: Any, ids: list[int]) -> None:
    data = oracle.decodeBytes(ids)
    assert b"".join(world.token_bytes(i) for i in ids) == data
    assert world.decode(ids) == data.decode("utf-8", errors="replace")


@pytest.mark.parametrize("name", WORLD)
def test_golden_samples(name: str) -> None:
    tokenizer = load_tokenizer(GOLDENS / name)
    for sample in golden_json(name)["tokenizer"]:
        assert tokenizer.encode(sample["text"]) == sample["ids"]
        assert tokenizer.encode(sample["text"], add_special_tokens=False) == sample["ids"]
        assert tokenizer.decode(sample["ids"]) == sample["text"]


def test_the_end_is_0_and_has_no_text(world: WorldTokenizer) -> None:
    assert (world.eos_token_id, world.bos_token_id, world.chat_template) == (0, None, None)
    assert world.decode([33155, 0, 45]) == "Hello,"
    assert world.decode([33155, 0], skip_special_tokens=False) == "Hello<|endoftext|>"
    assert (world.token_text(0), world.token_bytes(0), world.piece(0)) == (
        "<|endoftext|>",
        b"<|endoftext|>",
        b"",
    )
    assert 0 not in world.encode("<|endoftext|>")


def test_ids_without_a_token_add_nothing(world: WorldTokenizer) -> None:
    assert world.decode([65535, 33155, -1]) == "Hello"
    assert (world.token_bytes(65535), world.token_text(65535)) == (b"", "")


def test_a_declared_name_of_the_end_is_encoded_as_0() -> None:
    config = TokenizerConfig(added_tokens={0: AddedEntry("<|end|>")})
    tokenizer = WorldTokenizer(GOLDENS / "rwkv7_fla" / "rwkv_vocab_v20230424.txt", config)
    assert tokenizer.encode("<|end|>A<|end|><|end|>B") == [0, 66, 0, 0, 67]
    assert tokenizer.decode([66, 0], skip_special_tokens=False) == "A<|end|>"


def test_parts_of_characters_keep_their_bytes(world: WorldTokenizer) -> None:
    ids = [1 + byte for byte in "\U0001f642".encode()]
    assert b"".join(world.token_bytes(i) for i in ids).decode() == "\U0001f642"
    assert world.decode(ids) == "\U0001f642"
    assert [world.token_text(i) for i in ids] == ["\ufffd"] * 4
    assert world.decode([*ids[:2], 66]) == "\ufffdA"


def test_longest_match_backs_up_to_the_last_whole_token(tmp_path: Path) -> None:
    path = vocabulary(tmp_path, "1 'a' 1", "2 'b' 1", "3 'c' 1", "4 'ab' 2", "5 'abcab' 5")
    assert WorldTokenizer(path).encode("abcaabcabc") == [4, 3, 1, 5, 3]


def test_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rwkv_vocab.txt"
    path.write_bytes(b"1 'a' 1\r\n2 b'\\xff' 1\r\n")
    assert WorldTokenizer(path).decode([1, 2]) == "a\ufffd"


def test_a_byte_without_token_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"rwkv_vocab_test\.txt has no token for byte 0x7A"):
        WorldTokenizer(vocabulary(tmp_path, "1 'a' 1")).encode("az")


def test_half_of_a_surrogate_pair_is_refused(world: WorldTokenizer) -> None:
    with pytest.raises(RequestError, match="lone surrogate"):
        world.encode("\ud800")


BAD_LINES = {
    "wrong length": ("2 'bc' 3", "the token has 2 bytes, not 3"),
    "length in characters": ("2 '\u00e9' 1", "the token has 2 bytes, not 1"),
    "id twice": ("1 'b' 1", "id 1 occurs twice"),
    "token twice": ("2 'a' 1", "token b'a' occurs twice, as 1 and 2"),
    "id zero": ("0 'b' 1", "id 0 is the end of text"),
    "no quotes": ("2 b 1", "not a Python literal"),
    "unclosed": ("2 'b 1", "not a Python literal"),
    "a call": ("2 open('x') 1", "not a Python literal"),
    "a number": ("2 17 1", "a non-empty str or bytes literal expected"),
    "empty token": ("2 '' 0", "a non-empty str or bytes literal expected"),
    "surrogate": ("2 '\\ud800' 3", "surrogates not allowed"),
    "negative id": ("-2 'b' 1", "`id literal length` expected"),
    "no length": ("2 'b'", "`id literal length` expected"),
    "empty line": ("", "`id literal length` expected"),
    "huge id": (f"{10**30} 'b' 1", "`id literal length` expected"),
}


@pytest.mark.parametrize(("line", "message"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = vocabulary(tmp_path, "1 'a' 1", line, "9 'z' 1")
    with pytest.raises(TokenizerError) as caught:
        WorldTokenizer(path)
    assert f"{path}, line 2: " in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe1 'a' 1\n"], ids=["empty", "not utf-8"])
def test_an_unreadable_vocabulary_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rwkv_vocab.txt"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match=r"rwkv_vocab\.txt"):
        WorldTokenizer(path)
