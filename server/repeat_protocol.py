"""The request field `repeat`, and how messages are marked for it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ostinato.server.validation import WireModel, must_be

MAX_TIMES = 8
MAX_QUESTIONS = 128

Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[
    Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_QUESTIONS)],
    must_be(f"a string or a list of 1 to {MAX_QUESTIONS} strings, and not empty"),
]
Order = Annotated[
    str,
    Field(pattern=rf"^(q?c){{1,{MAX_TIMES}}}q$"),
    must_be(
        f'c and q in the order of reading, such as "cqcq": 1 to {MAX_TIMES} times c, never two q in a row, q at last'
    ),
]


class RepeatOptions(WireModel):
    """A context read several times around its question. See `ostinato.server.repeat`, and docs/http-api.md."""

    times: int | None = Field(None, ge=1, le=MAX_TIMES)
    order: Order | None = None
    context: Text | None = None
    question: Texts | None = None
    opening: Texts | None = None
    separator: str | None = None
    join: str | None = None
    from_state: bool = False


Repeat = Annotated[int, Field(ge=1, le=MAX_TIMES)] | RepeatOptions
Part = Literal["context", "question"]
