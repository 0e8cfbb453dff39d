"""Reading a context and its question several times: the forms of JRT-Prompt (Arora et al. 2024, arXiv 2407.05483).

A model whose memory has a fixed size must choose what to keep of a context before it knows the question. Read again,
with the question known, it can choose better. The paper's form is "cqcq": context, question, context, question. The
templates of its experiments are "qccq", with another wording of the question before the first context.

A reading holds each of the two at most once, so a new one begins where a letter comes again: cq|cq and qc|cq. `join`
stands between the parts of a reading, `separator` between readings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ostinato.engine.errors import RequestError
from ostinato.server.protocol import ChatMessage
from ostinato.server.repeat_protocol import Repeat, RepeatOptions

TIMES = 2
SEPARATOR = "\n"
JOIN = " "


@dataclass(frozen=True, slots=True)
class Form:
    """A text with holes for the context: it stands between each two of `segments`."""

    segments: tuple[str, ...]

    def text(self, context: str) -> str:
        return context.join(self.segments)

    def first_reading(self, context: str) -> str:
        """The text up to the end of the first context."""
        return self.segments[0] + context


def order_of(options: RepeatOptions) -> str:
    """c and q as they are read. Raises RequestError: `times` and `order` disagree."""
    order = options.order or "cq" * (options.times or TIMES)
    if options.times not in (None, order.count("c")):
        raise RequestError(
            f"repeat.times: {options.times}, but the order {order!r} reads the context {order.count('c')} times",
            "repeat.times",
        )
    return order


def forms_of(options: RepeatOptions) -> list[Form]:
    """One form for each question.

    Raises:
        RequestError: there is no question, or `opening` has no place or another number of texts.
    """
    order = order_of(options)
    if options.question is None:
        raise RequestError("repeat.question: Field required.", "repeat.question")
    questions = _list_of(options.question)
    openings = questions if options.opening is None else _list_of(options.opening)
    if options.opening is not None and order.count("q") < 2:
        message = f"repeat.opening: the order {order!r} reads the question only once"
        raise RequestError(message, "repeat.opening")
    if len(openings) != len(questions):
        message = f"repeat.opening: {len(openings)} texts for {len(questions)} questions"
        raise RequestError(message, "repeat.opening")
    return [_form(order, options, *pair) for pair in zip(questions, openings, strict=True)]


def _list_of(texts: str | list[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else texts


def _form(order: str, options: RepeatOptions, question: str, opening: str) -> Form:
    separator = SEPARATOR if options.separator is None else options.separator
    join = JOIN if options.join is None else options.join
    segments, reading = [""], ""
    for place, letter in enumerate(order):
        again = letter in reading
        segments[-1] += (separator if again else join) if place else ""
        reading = letter if again else reading + letter
        if letter == "c":
            segments.append("")
        else:
            segments[-1] += question if place == len(order) - 1 else opening
    return Form(tuple(segments))


def write_out(messages: Sequence[ChatMessage], repeat: Repeat) -> tuple[Sequence[ChatMessage], int]:
    """The messages as they are to be read, and how many of them make the first reading; 0: nothing is read again.

    A number repeats all messages. Else the marked ones, at the end, are written in their order; with `from_state`
    without the first context. What is read again is no checkpoint again.

    Raises:
        RequestError: there is nothing to repeat, or the messages are not marked as the form needs it.
    """
    if isinstance(repeat, RepeatOptions):
        return _marked(messages, repeat)
    if any(message.part is not None for message in messages):
        raise RequestError('messages: "part" needs repeat as an object, such as {"times": 2}', "messages")
    if repeat > 1 and not messages:
        raise RequestError("repeat: there are no messages to repeat", "repeat")
    again = [message.model_copy(update={"checkpoint": False}) for message in messages]
    return [*messages, *again * (repeat - 1)], len(messages) if repeat > 1 else 0


def _marked(messages: Sequence[ChatMessage], options: RepeatOptions) -> tuple[list[ChatMessage], int]:
    _check_chat(options)
    order = order_of(options)
    start = next((i for i, message in enumerate(messages) if message.part is not None), len(messages))
    before, block = list(messages[:start]), messages[start:]
    parts = {letter: [m for m in block if m.part == name] for letter, name in (("c", "context"), ("q", "question"))}
    _check_marks(order, options, start, messages, parts)
    written, first = before, 0
    for place, letter in enumerate(order):
        if place or not options.from_state:
            new = letter not in order[:place]
            written += parts[letter] if new else [m.model_copy(update={"checkpoint": False}) for m in parts[letter]]
        if letter == "c" and not first and not options.from_state:
            first = len(written)
    return written, first


def _check_chat(options: RepeatOptions) -> None:
    for name in ("context", "question", "opening"):
        if getattr(options, name) is not None:
            message = f'repeat.{name}: in messages, mark the message: "part": "context" or "question"'
            raise RequestError(message, f"repeat.{name}")
    for name in ("separator", "join"):
        if getattr(options, name) is not None:
            message = f"repeat.{name}: between messages the chat template writes what it always does"
            raise RequestError(message, f"repeat.{name}")


def _check_marks(
    order: str,
    options: RepeatOptions,
    start: int,
    messages: Sequence[ChatMessage],
    parts: dict[str, list[ChatMessage]],
) -> None:
    if options.from_state and (start or order.startswith("q")):
        message = "repeat.from_state: the state has read the context, so nothing can stand before its first reading"
        raise RequestError(message, "repeat.from_state")
    if any(message.part is None for message in messages[start:]):
        raise RequestError('messages: behind one with "part" all need it', "messages")
    needs_context = not options.from_state or order.count("c") > 1
    if not parts["q"] or (needs_context and not parts["c"]):
        missing = "context" if parts["q"] else "question"
        raise RequestError(f'messages: repeat needs a message with "part": "{missing}"', "messages")
