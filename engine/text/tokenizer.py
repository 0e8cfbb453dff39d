"""The tokenizer interface, finding and loading a tokenizer, and which ids end a text.

Tokenizers are data here: no code from a repository is ever run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ostinato.engine.errors import TokenizerError
from ostinato.engine.text.chat_template import Message
from ostinato.engine.text.config import TokenizerConfig, read_tokenizer_config
from ostinato.engine.text.files import convert_vocabulary, load_tokenizer_json
from ostinato.engine.text.hf_tokenizer import REMEDY
from ostinato.engine.text.world_tokenizer import END_ID, WorldTokenizer
from ostinato.models.errors import CheckpointError

_JSON_FILE = "tokenizer.json"
_WORLD_PATTERN = "rwkv_vocab*.txt"
_OLDER_FILES = (("tokenizer.model",), ("vocab.json", "merges.txt"))
_HUB_FILES = (
    _JSON_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
    _WORLD_PATTERN,
    *(name for names in _OLDER_FILES for name in names),
)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# What published configurations of World models say, and what in that vocabulary are the bytes NUL and SOH.
_WRONG_WORLD_IDS = frozenset({1, 2})
_WORLD_ROWS = 65536


class Tokenizer(Protocol):
    """Text to ids and back. Safe to use from several threads."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id; a model's output may have more rows than this (padding)."""

    @property
    def bos_token_id(self) -> int | None:
        """What the tokenizer's files say."""

    @property
    def eos_token_id(self) -> int | None:
        """What the tokenizer's files say; `resolve_eos` decides."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 in hex of what maps text to ids."""

    @property
    def chat_template(self) -> str | None:
        """Jinja text of the checkpoint's own template; None: the default form is in force."""

    def encode(self, text: str, *, add_special_tokens: bool = True, continues: bool = False) -> list[int]:
        """Ids of `text`. RequestError: not Unicode, or not expressible in the vocabulary.

        `continues`: it follows earlier text, so a SentencePiece tokenizer puts no space before it.
        """

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True, continues: bool = False) -> str:
        """Text of `ids`; what is not valid UTF-8 becomes U+FFFD, ids without a token add nothing.

        `continues`: they follow earlier text, so a SentencePiece tokenizer's leading space stays.
        """

    def piece(self, token_id: int, *, first: bool = False) -> bytes:
        """Bytes that the token adds to a text (`first`: that begins with it); none for a special token."""

    def token_bytes(self, token_id: int) -> bytes:
        """Exact bytes of a token inside a text, perhaps part of a character; a special token's name."""

    def token_text(self, token_id: int) -> str:
        """`token_bytes` as text, with U+FFFD for parts of characters."""

    def apply_chat_template(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        """Prompt text of `messages`, to be encoded with `add_special_tokens=False`.

        RequestError (field "messages"): the template does not take them.
        """


def load_tokenizer(path_or_id: str | Path) -> Tokenizer:
    """Load a tokenizer from a folder, a `tokenizer.json`, an RWKV vocabulary (`.txt`), or by its hub id.

    Of a hub repository only the tokenizer's files are downloaded.

    Raises:
        TokenizerError: nothing usable is there; names the file or id.
    """
    path = Path(path_or_id).expanduser()
    if path.is_file():
        return _load_file(path)
    folder = path if path.is_dir() else _download(path_or_id)
    tokenizer = find_tokenizer(folder)
    if tokenizer is None:
        expected = f"{_JSON_FILE}, {_WORLD_PATTERN} or tokenizer.model"
        raise TokenizerError(f"{path_or_id}: no tokenizer there; {expected} expected")
    return tokenizer


def find_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a checkpoint folder; None when it has no tokenizer files.

    Looked for in this order: `tokenizer.json`, an RWKV vocabulary, older vocabulary files (which transformers
    converts).

    Raises:
        TokenizerError: there are tokenizer files, but damaged ones, or only such that need code from the
            repository.
    """
    config = read_tokenizer_config(folder)
    if (folder / _JSON_FILE).is_file():
        return load_tokenizer_json(folder / _JSON_FILE, config)
    worlds = sorted(folder.glob(_WORLD_PATTERN))
    if len(worlds) > 1:
        names = ", ".join(path.name for path in worlds)
        raise TokenizerError(f"{folder}: several RWKV vocabularies ({names}); choose one with --tokenizer PATH")
    if worlds:
        return WorldTokenizer(worlds[0], config)
    return _find_older(folder, config)


def resolve_eos(
    config: Mapping[str, Any], generation_config: Mapping[str, Any], tokenizer: Tokenizer | None
) -> frozenset[int]:
    """Ids that end a text: those of generation_config.json, else of config.json, else the tokenizer's.

    RWKV World models always end with 0, whatever their configuration says besides; the 1 and 2 that published
    ones give are ordinary bytes in that vocabulary and are left out.

    Args:
        config: content of config.json; empty if there is none.
        generation_config: content of generation_config.json; empty if there is none.
        tokenizer: None when the model is served without.

    Raises:
        CheckpointError: an `eos_token_id` that is neither an id nor a list of ids.
    """
    stated = _eos_of("generation_config.json", generation_config) or _eos_of("config.json", config)
    if _is_world(config, tokenizer):
        return (stated - _WRONG_WORLD_IDS) | {END_ID}
    if stated or tokenizer is None or tokenizer.eos_token_id is None:
        return stated
    return frozenset({tokenizer.eos_token_id})


def _load_file(path: Path) -> Tokenizer:
    config = read_tokenizer_config(path.parent)
    if path.suffix == ".json":
        return load_tokenizer_json(path, config)
    if path.suffix == ".txt":
        return WorldTokenizer(path, config)
    raise TokenizerError(f"{path}: a tokenizer.json, an RWKV vocabulary (.txt) or a folder expected")


def _find_older(folder: Path, config: TokenizerConfig) -> Tokenizer | None:
    if config.needs_code:
        raise TokenizerError(
            f"{config.path}: this tokenizer needs code from its repository, which is never run; {REMEDY}"
        )
    for names in _OLDER_FILES:
        if all((folder / name).is_file() for name in names):
            return convert_vocabulary(folder, folder / names[0], config)
    if config.path is not None:
        raise TokenizerError(f"{config.path}: there is no vocabulary beside it, such as {_JSON_FILE}; {REMEDY}")
    return None


def _download(path_or_id: str | Path) -> Path:
    name = str(path_or_id)
    if _HUB_ID.fullmatch(name) is None or name.endswith((".json", ".txt", ".model")):
        raise TokenizerError(f"{name}: no such file or folder, and not a hub id")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(_HUB_FILES)))
    except (OSError, ValueError) as error:  # all errors of the hub's client are one or the other
        raise TokenizerError(f"{name}: no such folder, and the hub does not give it: {error}") from error


def _eos_of(file: str, config: Mapping[str, Any]) -> frozenset[int]:
    value = config.get("eos_token_id")
    if value is None:
        return frozenset()
    ids = value if isinstance(value, list) else [value]
    if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in ids):
        raise CheckpointError(f"{file}: eos_token_id must be a token id or a list of them, got {value!r}")
    return frozenset(ids)


def _is_world(config: Mapping[str, Any], tokenizer: Tokenizer | None) -> bool:
    """Without a tokenizer, the number of rows tells World models from those with the Pile's vocabulary."""
    if tokenizer is not None:
        return isinstance(tokenizer, WorldTokenizer)
    return str(config.get("model_type", "")).startswith("rwkv") and config.get("vocab_size") == _WORLD_ROWS
