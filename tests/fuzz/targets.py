"""The table of parsers that read bytes from outside. A new parser is one row of `TARGETS`.

A parser gets a spoilt sample and either takes it or raises one of the allowed errors. What it takes must then be good
for what comes next, so the parsers here go one step further where there is one: they encode a text with a tokenizer
that was read, write a snapshot again, show a record to its owner.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ostinato.engine.errors import (
    CheckpointError,
    RequestError,
    SnapshotError,
    StateStoreError,
    TokenizerError,
)
from tests.fuzz import model_files, requests, state_files, tokenizer_files
from tests.fuzz.containers import spoil_archive, spoil_compressed, spoil_safetensors
from tests.fuzz.mutate import Mutator, spoil_bytes, spoil_json, spoil_lines
from tests.fuzz.samples import Sample


@dataclass(frozen=True, slots=True)
class Target:
    """One parser. group: whose time it shares. parse: also raises AssertionError, for what must not be."""

    name: str
    group: str
    samples: Callable[[], Sequence[Sample]]
    spoil: Mutator
    parse: Callable[[Sample], object]
    allowed: tuple[type[Exception], ...] = ()


CONFIG = (CheckpointError,)
TOKENIZER = (TokenizerError, RequestError)

TARGETS = (
    Target(
        "state_file", "states", state_files.file_samples, spoil_safetensors, state_files.parse_file, (SnapshotError,)
    ),
    Target("state_record", "states", state_files.record_samples, spoil_json, state_files.parse_record, (ValueError,)),
    Target(
        "stored_record", "states", state_files.record_samples, spoil_json, state_files.read_store, (StateStoreError,)
    ),
    Target(
        "stored_content",
        "states",
        state_files.content_samples,
        spoil_safetensors,
        state_files.read_store,
        (StateStoreError,),
    ),
    Target(
        "compressed_content",
        "states",
        state_files.compressed_samples,
        spoil_compressed,
        state_files.read_store,
        (StateStoreError,),
    ),
    Target("safetensors", "weights", model_files.safetensors, spoil_safetensors, model_files.load_weights, CONFIG),
    Target("shard_index", "weights", model_files.indices, spoil_json, model_files.load_weights, CONFIG),
    Target("torch_file", "archives", model_files.archives, spoil_archive, model_files.load_weights, CONFIG),
    Target("initial_state", "archives", model_files.initial_states, spoil_archive, model_files.load_state, CONFIG),
    Target("config", "configs", model_files.configs, spoil_json, model_files.read_config, CONFIG),
    Target("generation_config", "configs", model_files.generation_configs, spoil_json, model_files.read_eos, CONFIG),
    Target("tokenizer_json", "tokenizers", tokenizer_files.json_files, spoil_json, tokenizer_files.load, TOKENIZER),
    Target("world_vocabulary", "tokenizers", tokenizer_files.worlds, spoil_lines, tokenizer_files.load, TOKENIZER),
    Target("tokenizer_config", "tokenizers", tokenizer_files.configs, spoil_json, tokenizer_files.load, TOKENIZER),
    Target("chat_template", "tokenizers", tokenizer_files.templates, spoil_bytes, tokenizer_files.load, TOKENIZER),
    Target("body", "bodies", requests.bodies, spoil_json, requests.send),
    Target("body_bytes", "bodies", requests.bodies, spoil_bytes, requests.send),
    Target("upload", "bodies", requests.uploads, spoil_safetensors, requests.send),
    Target("url", "urls", requests.urls, spoil_bytes, requests.send),
    Target("header", "urls", requests.headers, spoil_bytes, requests.send),
)
GROUPS = tuple(dict.fromkeys(target.group for target in TARGETS))
