"""The files of a tokenizer: vocabularies, what lies beside them, chat templates."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ostinato.engine.text.tokenizer import find_tokenizer
from tests.fuzz.samples import Sample, golden_files, put

TEXT = "Hello, wörld \U0001f600 <0x0A>\n"
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": TEXT}]
ADDED = {
    "added_tokens_decoder": {"0": {"content": "<unk>", "special": True, "lstrip": False}},
    "additional_special_tokens": ["<s>"],
    "extra_special_tokens": {"image_token": "</s>"},
    "chat_template": [{"name": "default", "template": "{{ messages[0]['content'] }}"}],
    "auto_map": {"AutoTokenizer": ["a.B", None]},
}
TEMPLATES = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message.content | trim }}{% endfor %}",
    "{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}{% else %}{{ raise_exception('no')"
    " }}{%- endif %}{{ bos_token }}{{ system | upper }}{% generation %}{{ messages | tojson(indent=2) }}"
    "{% endgeneration %}",
    "{% macro turn(m) %}{{ m.role ~ ': ' ~ m.content }}{% endmacro %}{% set ns = namespace(n=0) %}{% for m in messages "
    "%}{% if loop.first %}{% continue %}{% endif %}{% set ns.n = ns.n + 1 %}{{ turn(m) * 2 }}{% endfor %}"
    "{{ 2 ** ns.n }}{{ strftime_now('%d %b %Y') }}{{ 'a' | center(9) }}{{ '%5s' % ns.n }}",
)


def json_files() -> Sequence[Sample]:
    return golden_files("*/tokenizer.json")


def worlds() -> Sequence[Sample]:
    return golden_files("rwkv7_fla/rwkv_vocab*.txt")


def configs() -> Sequence[Sample]:
    found = golden_files("*/tokenizer_config.json")
    more = [Sample(sample.of, json.dumps({**json.loads(sample.data), **ADDED}).encode()) for sample in found[:1]]
    maps = [Sample(sample.of.replace("tokenizer_config", "special_tokens_map"), sample.data) for sample in found]
    return [*found, *more, *maps]


def templates() -> Sequence[Sample]:
    return [Sample("gla/chat_template.jinja", text.encode()) for text in TEMPLATES]


def load(sample: Sample) -> None:
    """Everything that the server asks of a tokenizer, once."""
    tokenizer = find_tokenizer(put(sample).parent)
    if tokenizer is None:
        return
    assert len(tokenizer.fingerprint) == 64
    ids = tokenizer.encode(TEXT)
    assert all(0 <= token < tokenizer.vocab_size for token in ids)
    tokenizer.decode(ids)
    tokenizer.decode([0, tokenizer.vocab_size - 1, tokenizer.vocab_size], skip_special_tokens=False)
    tokenizer.encode(tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True))
