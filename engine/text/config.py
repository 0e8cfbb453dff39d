"""Files beside a vocabulary: `tokenizer_config.json`, `special_tokens_map.json`, `chat_template.jinja`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ostinato.engine.errors import TokenizerError
from ostinato.engine.text.chat_template import ChatTemplate
from ostinato.models.errors import CheckpointError
from ostinato.models.sources import read_optional_json

CONFIG_FILE = "tokenizer_config.json"
_MAP_FILE = "special_tokens_map.json"
_TEMPLATE_FILE = "chat_template.jinja"
_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_MOST_DIGITS = 9  # of a token id
_LISTS = ("additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True, slots=True)
class AddedEntry:
    """One token of `added_tokens_decoder`, with the matching rules of the `tokenizers` package."""

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    special: bool = False


@dataclass(frozen=True, slots=True)
class TokenizerConfig:
    """What the files say about special tokens and chat. Empty for a vocabulary without such files.

    `needs_code`: the repository declares a tokenizer class of its own, which would have to be executed.
    """

    path: Path | None = None  # tokenizer_config.json, when there is one
    special_tokens: Mapping[str, str] = field(default_factory=dict)  # "bos_token" -> its text, ...
    more_special: tuple[str, ...] = ()
    added_tokens: Mapping[int, AddedEntry] = field(default_factory=dict)
    chat_template: ChatTemplate | None = None
    needs_code: bool = False

    @property
    def template_source(self) -> str | None:
        """Jinja text of the chat template."""
        return None if self.chat_template is None else self.chat_template.source


def read_tokenizer_config(folder: Path) -> TokenizerConfig:
    """Read the files of `folder`, those that exist; `tokenizer_config.json` wins over
    `special_tokens_map.json`, and `chat_template.jinja` over a template inside `tokenizer_config.json`.

    Raises:
        TokenizerError: a file is unreadable or an entry has the wrong type; names the file and the entry.
    """
    path = folder / CONFIG_FILE
    config = _read_object(path)
    token_map = _read_object(folder / _MAP_FILE)
    special = _special_tokens(token_map, folder / _MAP_FILE) | _special_tokens(config, path)
    auto_map = config.get("auto_map") or {}
    return TokenizerConfig(
        path=path if path.is_file() else None,
        special_tokens=special,
        more_special=_more_special(token_map, folder / _MAP_FILE) + _more_special(config, path),
        added_tokens=_added_tokens(config, path),
        chat_template=_chat_template(folder, config),
        needs_code=isinstance(auto_map, dict) and bool(auto_map.get("AutoTokenizer")),
    )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        return read_optional_json(path)
    except CheckpointError as error:
        raise TokenizerError(str(error)) from error


def _special_tokens(config: Mapping[str, Any], path: Path) -> dict[str, str]:
    return {name: _token_text(config[name], f"{path}: {name}") for name in _NAMES if config.get(name) is not None}


def _more_special(config: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    found: list[str] = []
    for name in _LISTS:
        entries = config.get(name) or []
        if isinstance(entries, dict):
            entries = list(entries.values())
        if not isinstance(entries, list):
            raise TokenizerError(f"{path}: {name}: a list expected, got {type(entries).__name__}")
        found.extend(_token_text(entry, f"{path}: {name}") for entry in entries)
    return tuple(found)


def _token_text(entry: object, where: str) -> str:
    """A special token is written as its text, or as an object with it in `content`."""
    text = entry.get("content") if isinstance(entry, dict) else entry
    if not isinstance(text, str) or not text:
        raise TokenizerError(f"{where}: a token's text expected, got {entry!r}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise TokenizerError(f"{where}: {text!r} holds half of a surrogate pair, which no text does") from None
    return text


def _added_tokens(config: Mapping[str, Any], path: Path) -> dict[int, AddedEntry]:
    entries = config.get("added_tokens_decoder") or {}
    where = f"{path}: added_tokens_decoder"
    if not isinstance(entries, dict):
        raise TokenizerError(f"{where}: an object expected, got {type(entries).__name__}")
    return {_token_id(key, where): _added_entry(entry, f"{where}[{key}]") for key, entry in entries.items()}


def _token_id(key: str, where: str) -> int:
    if not (key.isascii() and key.isdigit() and len(key) <= _MOST_DIGITS):
        raise TokenizerError(f"{where}: {key!r} is not a token id")
    return int(key)


def _added_entry(entry: object, where: str) -> AddedEntry:
    text = _token_text(entry, where)
    if not isinstance(entry, dict):
        return AddedEntry(text)
    flags = {
        name: entry[name] for name in ("single_word", "lstrip", "rstrip", "normalized", "special") if name in entry
    }
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TokenizerError(f"{where}.{name}: true or false expected, got {value!r}")
    return AddedEntry(text, **flags)


def _chat_template(folder: Path, config: Mapping[str, Any]) -> ChatTemplate | None:
    path = folder / _TEMPLATE_FILE
    if path.is_file():
        try:
            return ChatTemplate(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise TokenizerError(f"{path}: not readable: {error}") from error
    entry, where = config.get("chat_template"), f"{folder / CONFIG_FILE}: chat_template"
    if entry is None:
        return None
    return ChatTemplate(_default_template(entry, where), where)


def _default_template(entry: object, where: str) -> str:
    """One template, or a list of named ones, of which `default` is taken."""
    if isinstance(entry, str):
        return entry
    if isinstance(entry, list):
        named = [item for item in entry if isinstance(item, dict) and item.get("name") == "default"]
        if named and isinstance(named[0].get("template"), str):
            return str(named[0]["template"])
        raise TokenizerError(f"{where}: a list without a template named 'default'")
    raise TokenizerError(f"{where}: text expected, got {type(entry).__name__}")
