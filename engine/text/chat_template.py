"""Messages to prompt text: a checkpoint's own chat template, or the default where it has none.

A template is a Jinja program from the checkpoint. It runs in Jinja's immutable sandbox, with the settings and
helpers that published templates are written for (`trim_blocks`, `lstrip_blocks`, loop controls,
`raise_exception`, `tojson`, `strftime_now`, and `{% generation %}` marks, which change nothing in the text).

The default is the form RWKV World models are trained on, and a plain one for any other model. Turns are
separated by a blank line, and each begins with its speaker's name::

    System: You are brief.

    User: Hello

    Assistant:

Each message is stripped of surrounding white space. The prompt ends right after the colon, because in these
vocabularies the space belongs to the next token; so an answer usually begins with a space. `default_stop`
gives the strings that end an answer in this form.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, nodes, pass_context
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ostinato.engine.errors import RequestError, TokenizerError

Message = Mapping[str, Any]

MOST_COMPUTED = 10**7
_SPEAKERS = {"system": "System", "developer": "System", "user": "User", "assistant": "Assistant"}
_DEFAULT_STOP = ("\n\nUser:", "\n\nSystem:")


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: the Jinja text.
        origin: where it is from, for messages.

    Raises:
        TokenizerError: the text is not a Jinja template.
    """

    def __init__(self, source: str, origin: str) -> None:
        self.source = source
        try:
            self._template = _environment().from_string(source)
        except TemplateSyntaxError as error:
            raise TokenizerError(f"{origin}: chat template, line {error.lineno}: {error.message}") from error
        # The template becomes Python code, which can be too deep or too long for Python's compiler.
        except Exception as error:
            raise TokenizerError(f"{origin}: chat template: {str(error) or type(error).__name__}") from error

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool, special_tokens: Mapping[str, str]
    ) -> str:
        """The prompt text.

        Args:
            messages: each with `role`, `content` and whatever else the template reads.
            add_generation_prompt: end with the opening of the assistant's turn.
            special_tokens: text of each special token by its name (`bos_token`, ...).

        Raises:
            RequestError: the template refuses these messages, or fails on them; `field` is "messages".
        """
        variables: dict[str, Any] = {"tools": None, "documents": None, **special_tokens}
        variables |= {"messages": [dict(message) for message in messages]}
        try:
            return self._template.render(variables, add_generation_prompt=add_generation_prompt)
        # A template is a program: on messages that it does not expect it can raise anything.
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise RequestError(f"the model's chat template refuses these messages: {reason}", "messages") from error


def render_default(messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
    """The prompt text in the default form (see the top of this module).

    Raises:
        RequestError: a role other than system, developer, user and assistant, or content that is not text.
    """
    turns = [_render_turn(index, message) for index, message in enumerate(messages)]
    if add_generation_prompt:
        return "\n\n".join([*turns, "Assistant:"])
    return "".join(turn + "\n\n" for turn in turns)


def default_stop(chat_template: str | None) -> tuple[str, ...]:
    """Stop strings that a chat needs: those of the default form when it is in force, else none."""
    return _DEFAULT_STOP if chat_template is None else ()


def _render_turn(index: int, message: Message) -> str:
    role, content = message.get("role"), message.get("content")
    speaker = _SPEAKERS.get(role) if isinstance(role, str) else None
    if speaker is None:
        allowed = ", ".join(_SPEAKERS)
        raise RequestError(
            f"messages[{index}].role: {role!r} has no place in the default chat form ({allowed})", "messages"
        )
    if not isinstance(content, str):
        raise RequestError(f"messages[{index}].content: text expected, got {type(content).__name__}", "messages")
    return f"{speaker}: {content.strip()}".rstrip()


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
    environment = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", _GenerationMark],
        # Reading a template computes nothing: what is constant in it would be, at any cost, without a bound.
        optimized=False,
        finalize=_when_rendered,
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _Sandbox(ImmutableSandboxedEnvironment):
    """Refuses products and powers that would fill the memory. Loops are the template's own business."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        size = _size_of_power(left, right) if operator == "**" else _size_of_product(left, right)
        if size > MOST_COMPUTED:
            raise TemplateError(f"{operator} of such values makes more than {MOST_COMPUTED} characters or digits")
        return super().call_binop(context, operator, left, right)


def _size_of_product(left: Any, right: Any) -> int:
    """Characters, entries or bits."""
    for whole, times in ((left, right), (right, left)):
        if isinstance(whole, str | list | tuple) and isinstance(times, int):
            return len(whole) * times
    both_integers = isinstance(left, int) and isinstance(right, int)
    return left.bit_length() + right.bit_length() if both_integers else 0


def _size_of_power(left: Any, right: Any) -> int:
    both_integers = isinstance(left, int) and isinstance(right, int)
    return left.bit_length() * right if both_integers else 0


@pass_context
def _when_rendered(context: Context, value: Any) -> Any:
    """Changes nothing. That it takes a context keeps Jinja from writing out constants when a template is read."""
    del context
    return value


class _GenerationMark(Extension):
    """`{% generation %}...{% endgeneration %}` marks tokens for training; only the body stays."""

    tags = frozenset({"generation"})  # type: ignore[assignment]  # jinja2 declares a mutable set on the class

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
