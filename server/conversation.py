"""From messages to the text that the model is to read: a whole conversation, or what follows a state.

A state knows no messages, only that it has read a text. What follows it is what the model's own template writes after
a turn, so the template is rendered with a stand-in for all that the state has read, and cut behind it.
"""

from __future__ import annotations

from collections.abc import Sequence

from ostinato.engine.errors import RequestError
from ostinato.engine.text.tokenizer import Tokenizer
from ostinato.server.protocol import ChatMessage

STAND_IN = "ostinato-stand-in"
BEFORE = ({"role": "user", "content": STAND_IN}, {"role": "assistant", "content": STAND_IN})


class Conversation:
    """Renders messages, after a state or at the beginning.

    after: None for the beginning, else whether the state stands inside of the assistant's turn, which the next message
    closes, or behind a complete one.
    """

    def __init__(self, tokenizer: Tokenizer, messages: Sequence[ChatMessage], after: bool | None) -> None:
        if not messages and after is None:
            raise RequestError("messages: at least one is needed, unless a state is named", "messages")
        self._tokenizer = tokenizer
        self._messages = messages
        self._after = after

    def text(self, count: int | None = None, *, answers: bool = True) -> str:
        """What the first `count` messages read, and the opening of the assistant's turn if it `answers`.

        Raises:
            RequestError: the template does not take these messages, or cannot be cut.
        """
        messages = [plain(message) for message in self._messages[:count]]
        if self._after is None:
            return self._render(messages, answers=answers)
        if self._after and not messages:
            return ""  # the answer goes on
        whole, read = self._render([*BEFORE, *messages], answers=answers), self._render(list(BEFORE), answers=False)
        if self._after:
            read = read[: read.rfind(STAND_IN) + len(STAND_IN)]
        fits, rest = STAND_IN in read and whole.startswith(read), whole[len(read) :]
        if not fits:
            raise RequestError(
                "the model's chat template cannot be continued behind a state: send the whole conversation, or a "
                "prompt to /v1/completions",
                "messages",
            )
        return rest

    def checkpoints(self, ids: Sequence[int]) -> dict[int, str | None]:
        """Where the messages end that are marked as checkpoints: their names by number of tokens of `ids`.

        A token that reaches over the end of a message is left out.
        """
        found: dict[int, str | None] = {}
        for count, message in enumerate(self._messages, start=1):
            if message.checkpoint is not False:
                name = message.checkpoint if isinstance(message.checkpoint, str) else None
                length = self.length(count, ids)
                if not length:
                    where = f"messages[{count - 1}].checkpoint"
                    raise RequestError(f"{where}: the template writes nothing up to there", "messages")
                found[length] = name
        return found

    def length(self, count: int, ids: Sequence[int]) -> int:
        """How many tokens of `ids` lie within the first `count` messages."""
        beginning = self._encode(self.text(count, answers=False))
        return shared_length(beginning, ids)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False, continues=self._after is not None)

    def _render(self, messages: list[dict[str, str]], *, answers: bool) -> str:
        return self._tokenizer.apply_chat_template(messages, add_generation_prompt=answers)


def shared_length(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two lists have in common before they part."""
    pairs = zip(left, right, strict=False)
    return next((i for i, (one, other) in enumerate(pairs) if one != other), min(len(left), len(right)))


def plain(message: ChatMessage) -> dict[str, str]:
    """As templates expect it: one text, and `system` for what newer clients call `developer`."""
    content = message.content
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    named = {} if message.name is None else {"name": message.name}
    return {"role": "system" if message.role == "developer" else message.role, "content": text, **named}
