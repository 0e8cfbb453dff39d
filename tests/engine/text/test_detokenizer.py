"""Streams of text equal decoding at once; stop strings equal a search of the whole text."""

from __future__ import annotations

import functools
import itertools
from dataclasses import FrozenInstanceError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostinato.engine.text.detokenizer import TextDelta, TextStream
from ostinato.engine.text.tokenizer import Tokenizer, load_tokenizer
from tests.engine.text.tokenizer_samples import (
    BYTE_LEVEL,
    GOLDENS,
    SENTENCEPIECE,
    WORLD_VOCABULARY,
    sentencepiece_tokenizer,
    untimed,
)

ALL = [*BYTE_LEVEL, *SENTENCEPIECE, "rwkv7_fla", "world"]


@functools.cache
def tokenizer_of(name: str) -> Tokenizer:
    if name in SENTENCEPIECE:
        return sentencepiece_tokenizer(name)
    return load_tokenizer(WORLD_VOCABULARY if name == "world" else GOLDENS / name)


class Bytes:
    """A tokenizer whose tokens are the given pieces."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    def piece(self, token_id: int, *, first: bool = False) -> bytes:
        return self.pieces[token_id]


def feed(stream: TextStream, count: int, allow: list[bool] | None = None) -> tuple[str, str | None, list[str]]:
    """All text, the stop string, and the text of each push."""
    texts: list[str] = []
    for i in range(count):
        delta = stream.push(i, allow_stop=allow is None or allow[i])
        texts.append(delta.text)
        if delta.stop is not None:
            assert stream.flush() == ""
            return "".join(texts), delta.stop, texts
    return "".join(texts) + stream.flush(), None, texts


def cut(text: str, sizes: list[int]) -> list[bytes]:
    """The bytes of `text` in pieces of these sizes; the rest in one."""
    data = text.encode()
    ends = [min(end, len(data)) for end in itertools.accumulate(sizes)]
    return [data[low:high] for low, high in itertools.pairwise([0, *ends, len(data)])]


def search(pieces: list[bytes], stops: list[str], allow: list[bool]) -> tuple[int, int, str] | None:
    """Naive: of all occurrences the first to end, of these the longest. (start, end, stop)"""
    text, found = b"".join(pieces).decode(), []
    ends = list(itertools.accumulate(map(len, pieces)))
    for stop, start in itertools.product(stops, range(len(text))):
        if text.startswith(stop, start):
            last_byte = len(text[: start + len(stop)].encode())
            piece = next(i for i, end in enumerate(ends) if end >= last_byte)
            if allow[piece]:
                found.append((start + len(stop), start, stop))
    if not found:
        return None
    end, start, stop = min(found)
    return start, end, stop


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("continues", [False, True])
@untimed
@given(data=st.data())
def test_random_ids_stream_to_what_decoding_gives(name: str, continues: bool, data: st.DataObject) -> None:
    tokenizer = tokenizer_of(name)
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=40))
    stream = TextStream(tokenizer, continues=continues)
    streamed = "".join([stream.push(i).text for i in ids]) + stream.flush()
    assert streamed == tokenizer.decode(ids, continues=continues)


@pytest.mark.parametrize("name", ALL)
@untimed
@given(text=st.text())
def test_text_streams_without_half_characters(name: str, text: str) -> None:
    tokenizer = tokenizer_of(name)
    ids = tokenizer.encode(text, add_special_tokens=False)
    stream = TextStream(tokenizer, stop=("never-there",), continues=False)
    texts = [stream.push(i).text for i in ids] + [stream.flush()]
    assert "".join(texts) == tokenizer.decode(ids)
    assert "\ufffd" in text or not any("\ufffd" in part for part in texts)


@pytest.mark.parametrize("name", [*BYTE_LEVEL, "rwkv7_fla", "world"])
@untimed
@given(text=st.text())
def test_byte_tokenizers_stream_back_the_text(name: str, text: str) -> None:
    tokenizer = tokenizer_of(name)
    stream = TextStream(tokenizer)
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert "".join([stream.push(i).text for i in ids]) + stream.flush() == text


@untimed
@given(pieces=st.lists(st.binary(max_size=5)))
def test_any_bytes_stream_to_their_decoding_and_at_most_three_wait(pieces: list[bytes]) -> None:
    stream, seen = TextStream(Bytes(pieces)), b""
    texts = []
    for i, piece in enumerate(pieces):
        seen += piece
        texts.append(stream.push(i).text)
        least = seen[:-3].decode("utf-8", errors="replace").rstrip("\ufffd")
        assert "".join(texts).startswith(least)
    assert "".join(texts) + stream.flush() == seen.decode("utf-8", errors="replace")


def test_invalid_bytes_do_not_stall() -> None:
    stream = TextStream(Bytes([b"a\xe4", b"\xbd", b"x", b"\xff", b"y\xf0\x9f"]))
    assert [stream.push(i).text for i in range(5)] == ["a", "", "\ufffdx", "\ufffd", "y"]
    assert (stream.flush(), stream.flush()) == ("\ufffd", "")


def test_special_tokens_have_no_text_and_do_not_begin_it() -> None:
    tokenizer = tokenizer_of("llama")
    ids = [1, *tokenizer.encode("the river", add_special_tokens=False), 2]
    stream = TextStream(tokenizer, continues=False)
    assert "".join([stream.push(i).text for i in ids]) + stream.flush() == "the river"


@untimed
@given(
    text=st.text(alphabet="ab\U0001f642", max_size=16) | st.text(alphabet="ab", max_size=16),
    sizes=st.lists(st.integers(0, 5), max_size=16),
    include=st.booleans(),
    data=st.data(),
)
def test_stop_strings_as_a_search_of_the_whole_text_finds_them(
    text: str, sizes: list[int], include: bool, data: st.DataObject
) -> None:
    pieces = cut(text, sizes)
    parts = st.tuples(st.integers(0, 15), st.integers(1, 8)).map(lambda p: text[p[0] : p[0] + p[1]] or "b")
    others = st.text(alphabet="ab\U0001f642", min_size=1, max_size=5)
    stops = data.draw(st.lists(parts | others, max_size=3))
    allow = data.draw(st.lists(st.booleans(), min_size=len(pieces), max_size=len(pieces)))
    got, stop, texts = feed(TextStream(Bytes(pieces), stops, include), len(pieces), allow)
    expected = search(pieces, stops, allow)
    if expected is None:
        assert (got, stop) == (text, None)
    else:
        start, end, name = expected
        assert (got, stop) == (text[: end if include else start], name)
    held_at_most = max([len(s) for s in stops], default=1) - 1
    for i in range(len(texts) - (stop is not None)):
        decoded = b"".join(pieces[: i + 1]).decode("utf-8", errors="ignore")
        assert len("".join(texts[: i + 1])) >= len(decoded) - held_at_most


@untimed
@given(
    text=st.text(alphabet="ab\u00e9", max_size=16),
    stops=st.lists(st.text(alphabet="ab\u00e9", min_size=1, max_size=4), max_size=3),
    sizes=st.lists(st.integers(0, 5), max_size=16),
)
def test_the_outcome_does_not_depend_on_where_tokens_end(text: str, stops: list[str], sizes: list[int]) -> None:
    whole, pieces = [text.encode()], cut(text, sizes)
    one = feed(TextStream(Bytes(whole), stops), 1)[:2]
    assert feed(TextStream(Bytes(pieces), stops), len(pieces))[:2] == one


@pytest.mark.parametrize("name", ALL)
def test_a_stop_string_over_several_tokens_of_a_real_vocabulary(name: str) -> None:
    tokenizer = tokenizer_of(name)
    ids = tokenizer.encode("the river keeps the rain", add_special_tokens=False)
    stream, text = TextStream(tokenizer, ("r keeps t", "ZZ"), continues=False), ""
    for i in ids:
        delta = stream.push(i)
        text += delta.text
        if delta.stop:
            break
    assert (text, delta.stop) == ("the rive", "r keeps t")


def test_of_overlapping_stop_strings_the_first_to_end_wins() -> None:
    assert feed(TextStream(Bytes([b"abcd"]), ("bcd", "c")), 1)[:2] == ("ab", "c")
    assert feed(TextStream(Bytes([b"abcd"]), ("c", "abc")), 1)[:2] == ("", "abc")


@pytest.mark.parametrize(("text", "stop"), [("aaab", "aab"), ("ababac", "abac"), ("aabaabaaab", "aabaaab")])
def test_a_stop_string_after_a_false_beginning(text: str, stop: str) -> None:
    pieces = [char.encode() for char in text]
    assert feed(TextStream(Bytes(pieces), (stop,)), len(pieces))[:2] == (text.removesuffix(stop), stop)


def test_a_stop_string_may_begin_inside_one_that_passed() -> None:
    stream = TextStream(Bytes([b"a", b"a", b"a"]), ("aa",))
    deltas = [stream.push(i, allow_stop=i == 2) for i in range(3)]
    assert deltas == [TextDelta(""), TextDelta("a"), TextDelta("", "aa")]


def test_min_tokens_lets_a_stop_string_pass_for_good() -> None:
    stream = TextStream(Bytes([b"x.", b".", b"y"]), (".",))
    assert [stream.push(i, allow_stop=i > 0) for i in range(2)] == [TextDelta("x."), TextDelta("", ".")]


def test_a_stop_string_that_begins_before_min_tokens_hits_after() -> None:
    stream = TextStream(Bytes([b"a#", b"#b"]), ("##",), include_stop=True)
    assert stream.push(0, allow_stop=False) == TextDelta("a")
    assert stream.push(1) == TextDelta("##", "##")


def test_what_might_have_become_a_stop_string_comes_with_flush() -> None:
    stream = TextStream(Bytes([b"a\n", b"\n"]), ("\n\nUser:",))
    assert [stream.push(0).text, stream.push(1).text, stream.flush()] == ["a", "", "\n\n"]


def test_nothing_may_follow_the_stop() -> None:
    stream = TextStream(Bytes([b"a"]), ("a",))
    stream.push(0)
    with pytest.raises(RuntimeError, match="after the stop string"):
        stream.push(0)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        TextStream(Bytes([]), ("",))


def test_deltas_are_values() -> None:
    with pytest.raises(FrozenInstanceError):
        TextDelta("a").text = "b"  # type: ignore[misc]  # that it cannot be assigned is the point
