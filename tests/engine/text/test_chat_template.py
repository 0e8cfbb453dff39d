"""Chat templates, against transformers' renderer, and the default form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
from transformers import PreTrainedTokenizerFast

from ostinato.engine.errors import RequestError, TokenizerError
from ostinato.engine.text.chat_template import ChatTemplate, default_stop, render_default
from ostinato.engine.text.tokenizer import load_tokenizer
from tests.engine.text.tokenizer_samples import GOLDENS, copy

ARGUMENTS = {"b": 1, "a": "\u00e9<"}
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be <brief> & kind."},
    {"role": "user", "content": "Caf\u00e9?\n"},
    {
        "role": "assistant",
        "content": "Yes.",
        "tool_calls": [{"name": "f", "arguments": ARGUMENTS}],
    },
    {"role": "user", "content": "Which?"},
]
WORLD_FILES = ("rwkv_vocab_v20230424.txt", "tokenizer_config.json")
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

TEMPLATES = {
    "chatml": """{% for m in messages %}
    {{- '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
    "blocks are trimmed": """{{ bos_token }}
    {% for m in messages %}
        {% if m.role == 'user' %}
U {{ m.content | trim }}
        {% else %}
A {{ m.content }}{{ eos_token }}
        {% endif %}
    {% endfor %}
""",
    "loop controls": "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}x{% endfor %}",
    "tojson": "{{ messages | tojson }}{{ messages[2].tool_calls | tojson(indent=2, sort_keys=True) }}",
    "absent values": "{{ tools is none }}{{ documents is none }}{{ unk_token is defined }}",
    "generation mark": "{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %}|{% endfor %}",
    "namespace": "{% set c = namespace(n=0) %}{% for m in messages %}{% set c.n = 7 %}{% endfor %}{{ c.n }}",
    "published world": (
        "{{ '<|rwkv_tokenizer_end_of_text|>' }}{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\\n\\n' }}"
        "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + '\\n\\n' }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
    ),
}


@pytest.fixture(scope="module")
def transformers_tokenizer() -> Any:
    path = str(GOLDENS / "gla" / "tokenizer.json")
    return cast(Any, PreTrainedTokenizerFast)(tokenizer_file=path, **SPECIAL)


@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("prompt", [True, False])
def test_templates_render_as_transformers_renders_them(transformers_tokenizer: Any, source: str, prompt: bool) -> None:
    expected = transformers_tokenizer.apply_chat_template(
        MESSAGES, chat_template=source, add_generation_prompt=prompt, tokenize=False
    )
    template = ChatTemplate(source, "test")
    assert template.render(MESSAGES, add_generation_prompt=prompt, special_tokens=SPECIAL) == expected


def test_the_date_is_given(transformers_tokenizer: Any) -> None:
    template = ChatTemplate("{{ strftime_now('%d %b') | length }}", "test")
    assert template.render([], add_generation_prompt=False, special_tokens={}) == "6"


REFUSED = {
    "refusal": ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    "undefined": ("{{ messages[0].name.first }}", "has no attribute 'name'"),
    "type": ("{{ messages[0].content + 1 }}", "can only concatenate str"),
    "private attribute": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    "mutation": ("{{ messages.append(1) }}", "is unsafe"),
    "endless": ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
}


@pytest.mark.parametrize(("source", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_template_that_fails_refuses_the_messages(source: str, reason: str) -> None:
    with pytest.raises(RequestError, match=f"chat template refuses these messages: .*{reason}") as caught:
        ChatTemplate(source, "test").render(MESSAGES, add_generation_prompt=True, special_tokens={})
    assert caught.value.field == "messages"


def test_a_malformed_template_is_refused_at_once() -> None:
    with pytest.raises(TokenizerError, match=r"x\.jinja: chat template, line 2: .*endfor"):
        ChatTemplate("{% for m in messages %}\n{% endif %}", "x.jinja")


def test_the_default_form() -> None:
    messages = [
        {"role": "system", "content": " Be brief. "},
        *MESSAGES[1:3],
        {"role": "user", "content": "Why?"},
    ]
    told = "System: Be brief.\n\nUser: Caf\u00e9?\n\nAssistant: Yes.\n\nUser: Why?\n\n"
    assert render_default(messages, add_generation_prompt=True) == told + "Assistant:"
    assert render_default(messages, add_generation_prompt=False) == told
    assert default_stop(None) == ("\n\nUser:", "\n\nSystem:")
    assert default_stop("{{ messages }}") == ()


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "tool", "content": "x"}, r"messages\[1\]\.role: 'tool' has no place"),
        ({"content": "x"}, r"messages\[1\]\.role: None has no place"),
        ({"role": ["user"], "content": "x"}, r"messages\[1\]\.role: \['user'\] has no place"),
        ({"role": "user", "content": None}, r"messages\[1\]\.content: text expected, got NoneType"),
        ({"role": "user"}, r"messages\[1\]\.content: text expected"),
    ],
)
def test_what_the_default_form_cannot_say_is_named(message: dict[str, Any], reason: str) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        render_default([MESSAGES[0], message], add_generation_prompt=True)
    assert caught.value.field == "messages"


def test_the_default_form_opens_with_the_token_that_encode_adds() -> None:
    for name, opening in (("gla", "<s>"), ("mamba_hf", ""), ("rwkv7_fla", "")):
        tokenizer = load_tokenizer(GOLDENS / name)
        text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True)
        assert text == opening + "User: hi\n\nAssistant:"
        ids = tokenizer.encode("User: hi\n\nAssistant:")
        assert tokenizer.encode(text, add_special_tokens=False) == ids


def test_a_template_comes_from_its_own_file_first(tmp_path: Path) -> None:
    path = copy("gla", tmp_path) / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["chat_template"] = [
        {"name": "rag", "template": "r"},
        {"name": "default", "template": "{{ bos_token }}d"},
    ]
    path.write_text(json.dumps(config), encoding="utf-8")
    assert load_tokenizer(tmp_path).apply_chat_template([], add_generation_prompt=True) == "<s>d"
    (tmp_path / "chat_template.jinja").write_text("{{ eos_token }}j", encoding="utf-8")
    assert load_tokenizer(tmp_path).apply_chat_template([], add_generation_prompt=True) == "</s>j"
    assert load_tokenizer(tmp_path).chat_template == "{{ eos_token }}j"


def test_the_published_world_template_opens_with_id_0(tmp_path: Path) -> None:
    (copy("rwkv7_fla", tmp_path, *WORLD_FILES) / "chat_template.jinja").write_text(
        TEMPLATES["published world"], encoding="utf-8"
    )
    tokenizer = load_tokenizer(tmp_path)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True)
    body = tokenizer.encode("User: hi\n\nAssistant:")
    assert tokenizer.encode(text, add_special_tokens=False) == [0, *body]
