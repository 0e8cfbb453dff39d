"""The files beside a vocabulary: what they add, and every way they can be wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from ostinato.engine.errors import TokenizerError
from ostinato.engine.text.tokenizer import find_tokenizer, load_tokenizer
from tests.engine.text.tokenizer_samples import Change, copy, edit

BAD_CONFIGS: dict[str, tuple[Change, str]] = {
    "eos type": (lambda c: c.update(eos_token=3), r"tokenizer_config\.json: eos_token: a token's text"),
    "eos unknown": (lambda c: c.update(eos_token="<end>"), r"eos_token '<end>' is not in the vocabulary"),
    "added id": (
        lambda c: c.update(added_tokens_decoder={"x": {"content": "a"}}),
        r"added_tokens_decoder: 'x' is not a token id",
    ),
    "added long id": (
        lambda c: c.update(added_tokens_decoder={"9" * 5000: {"content": "a"}}),
        r"added_tokens_decoder: '9+' is not a token id",
    ),
    "added elsewhere": (
        lambda c: c.update(added_tokens_decoder={"5": {"content": "</s>"}}),
        r"token '</s>' has id 5, but 2 in",
    ),
    "added flag": (
        lambda c: c.update(added_tokens_decoder={"2": {"content": "</s>", "special": "yes"}}),
        r"added_tokens_decoder\[2\]\.special: true or false expected",
    ),
    "added type": (lambda c: c.update(added_tokens_decoder=[1]), "added_tokens_decoder: an object"),
    "more special": (
        lambda c: c.update(additional_special_tokens="<a>"),
        "additional_special_tokens: a list",
    ),
    "template type": (lambda c: c.update(chat_template=5), r"chat_template: text expected, got int"),
    "template names": (lambda c: c.update(chat_template=[{"name": "rag"}]), "without a template named"),
    "template syntax": (lambda c: c.update(chat_template="\n{% if %}"), "chat_template: .* line 2"),
}


@pytest.mark.parametrize(("change", "message"), BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_a_wrong_configuration_is_named(tmp_path: Path, change: Change, message: str) -> None:
    edit(copy("gla", tmp_path) / "tokenizer_config.json", change)
    with pytest.raises(TokenizerError, match=message) as caught:
        find_tokenizer(tmp_path)
    assert str(tmp_path / "tokenizer_config.json") in str(caught.value)


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON: .* line 1 column 2"),
        ("[]", "must hold a JSON object, found a list"),
        ('{"a":' * 200_000, "is nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "cannot be read: .*5000 digits"),
    ],
    ids=["cut off", "list", "nested", "long integer"],
)
def test_a_damaged_configuration_is_named(tmp_path: Path, file: str, content: str, message: str) -> None:
    (copy("gla", tmp_path) / file).write_text(content, encoding="utf-8")
    with pytest.raises(TokenizerError, match=f"{file} {message}"):
        find_tokenizer(tmp_path)


def test_special_tokens_map_is_read_where_the_configuration_is_silent(tmp_path: Path) -> None:
    copy("gla", tmp_path, "tokenizer.json")
    edit(
        tmp_path / "special_tokens_map.json",
        lambda c: c.update(eos_token={"content": "</s>"}, bos_token="<s>"),
    )
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)


def test_tokens_that_only_the_configuration_has_are_added(tmp_path: Path) -> None:
    added = {"263": {"content": "<|end|>", "special": True}, "264": {"content": "<|tool|>"}}
    config = {"added_tokens_decoder": added, "eos_token": "<|end|>", "additional_special_tokens": ["H"]}
    edit(copy("gla", tmp_path) / "tokenizer_config.json", lambda c: c.update(config))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.eos_token_id) == (265, 263)
    assert tokenizer.encode("<|tool|><|end|>", add_special_tokens=False) == [264, 263]
    assert tokenizer.decode([264, 42, 263]) == "<|tool|>"  # H (42) was declared special
