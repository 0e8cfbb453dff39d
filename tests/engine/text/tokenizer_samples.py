"""Tokenizers that the tests of this folder share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rwkv  # type: ignore[import-untyped]  # ships no types
from hypothesis import settings
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from ostinato.engine.text.config import TokenizerConfig
from ostinato.engine.text.hf_tokenizer import HfTokenizer

GOLDENS = Path(__file__).parents[2] / "goldens"
BYTE_LEVEL = ("gla", "mamba_hf")
WORLD = ("rwkv5_hf", "rwkv5_pth", "rwkv6_hf", "rwkv6_pth", "rwkv7_fla", "rwkv7_pth")
WORLD_VOCABULARY = Path(next(iter(rwkv.__path__))) / "rwkv_vocab_v20230424.txt"
SENTENCEPIECE = ("llama", "gemma", "metaspace", "metaspace-never")

# A time limit would make a slow machine fail; the blob lets a failure be run again.
untimed = settings(deadline=None, print_blob=True)

_TEXT = "The river keeps the rain. What the river took, the sea gave back; and the rain fell, and fell again."
_MARK = "\u2581"


Change = Callable[[dict[str, Any]], object]


def golden_json(name: str) -> dict[str, Any]:
    content = json.loads((GOLDENS / name / "golden.json").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def copy(name: str, folder: Path, *files: str) -> Path:
    """Copy files of a golden folder, by default those of its tokenizer.json, to where they can be changed."""
    for file in files or ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(GOLDENS / name / file, folder / file)
        (folder / file).chmod(0o644)
    return folder


def edit(path: Path, change: Change) -> None:
    """Change the object in a JSON file, an empty one if there is no file."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def sentencepiece_like(style: str) -> Backend:
    """A BPE with byte tokens and the word mark, in one of the forms in which public checkpoints write it."""
    trained = Backend(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator([_TEXT], trainers.BpeTrainer(vocab_size=80, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"], _MARK * 2]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(names))}
    merges = [tuple(merge) for merge in model["merges"]]
    backend = Backend(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.add_tokens([AddedToken("[tool]", normalized=False)])
    _set_spacing(backend, style)
    return backend


def sentencepiece_tokenizer(style: str) -> HfTokenizer:
    config = TokenizerConfig(special_tokens={"bos_token": "<s>", "eos_token": "</s>"})
    return HfTokenizer(sentencepiece_like(style), config, Path(f"{style}/tokenizer.json"))


def _set_spacing(backend: Backend, style: str) -> None:
    replace = [decoders.Replace(_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    spaces = normalizers.Replace(Regex(" "), _MARK)
    if style == "llama":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(_MARK), spaces])
        backend.decoder = decoders.Sequence([*replace, decoders.Strip(" ", 1, 0)])
    elif style == "gemma":
        backend.normalizer = spaces
        backend.decoder = decoders.Sequence(replace)
    else:
        scheme = "never" if style == "metaspace-never" else "always"
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme)])
