"""From the files of a tokenizer to one: `tokenizer.json`, or older vocabularies that transformers converts."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer as Backend

from ostinato.engine.errors import RequestError, TokenizerError
from ostinato.engine.text.config import TokenizerConfig
from ostinato.engine.text.hf_tokenizer import REMEDY, HfTokenizer
from ostinato.engine.text.panics import PanicError, panics_raised


def load_tokenizer_json(path: Path, config: TokenizerConfig) -> HfTokenizer:
    """Load a `tokenizer.json`.

    Raises:
        TokenizerError: it is damaged, or contradicts `config`; names the file.
    """
    try:
        with panics_raised():
            backend = Backend.from_str(path.read_text(encoding="utf-8"))
    # The package raises plain Exception for whatever is wrong with the text.
    except Exception as error:
        raise TokenizerError(f"{path}: not a tokenizer of the tokenizers package: {error}") from error
    tokenizer = HfTokenizer(backend, config, path)
    _check_by_encoding(tokenizer, path)
    return tokenizer


def _check_by_encoding(tokenizer: HfTokenizer, path: Path) -> None:
    """Some of what is wrong shows only with a text: a template with a token that it does not define, or with an id that
    no token has. That this text has no tokens is no fault. Raises TokenizerError.
    """
    try:
        ids = tokenizer.encode("a")
    except RequestError as error:
        if isinstance(error.__cause__, PanicError):
            raise TokenizerError(f"{path}: {error.__cause__}") from error
        return
    if unknown := [token_id for token_id in ids if token_id >= tokenizer.vocab_size]:
        raise TokenizerError(f"{path}: it adds ids to texts that are not in its vocabulary: {unknown}")


def convert_vocabulary(folder: Path, vocabulary: Path, config: TokenizerConfig) -> HfTokenizer:
    """Load a folder that has only older vocabulary files (`tokenizer.model`, or `vocab.json` with
    `merges.txt`), which transformers converts. No code of the repository is run.

    Raises:
        TokenizerError: transformers cannot convert it, for example because a package is missing; names the
            file.
    """
    from transformers import AutoTokenizer  # takes seconds to import, and few models need it

    try:
        loaded = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    # Converters of many formats and packages: the errors have no common class.
    except Exception as error:
        hint = "it may need `pip install sentencepiece protobuf tiktoken`"
        raise TokenizerError(f"{vocabulary}: transformers cannot load it ({error}); {hint}, or {REMEDY}") from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if not isinstance(backend, Backend):
        raise TokenizerError(f"{vocabulary}: {type(loaded).__name__} has no tokenizer.json form; {REMEDY}")
    tokenizer = HfTokenizer(backend, config, vocabulary)
    _check_by_encoding(tokenizer, vocabulary)
    return tokenizer
