"""What every route works with. One per app; nothing here is global."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, field
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING

from ostinato.engine.errors import RequestError, TextNeedsTokenizerError
from ostinato.server.errors import ModelNotFoundError
from ostinato.server.protocol import CompletionRequest
from ostinato.server.security.meters import Meters
from ostinato.server.states.save_room import LEAST_ROOM, SaveRoom
from ostinato.server.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from ostinato.engine.service import Service
    from ostinato.engine.states import States
    from ostinato.engine.text.tokenizer import Tokenizer
    from ostinato.server.settings import ServerSettings

INLINE_CHARACTERS = 8192  # longer texts are tokenized in a thread, so that streams of others go on


def _tokenizing_threads() -> ThreadPoolExecutor:
    """Of their own: all others may be waiting for a slow state store."""
    return ThreadPoolExecutor(2, "tokenizing")


@dataclass(frozen=True)
class Context:
    """The service, its settings and metrics, and the questions that several routes ask of them."""

    service: Service
    settings: ServerSettings
    metrics: Metrics
    states: States | None = None  # None: this server keeps none
    meters: Meters = field(default_factory=Meters)  # what each API key has used
    tokenizing: ThreadPoolExecutor = field(default_factory=_tokenizing_threads)
    created: int = field(default_factory=lambda: int(time.time()))  # when the model was loaded, seconds since 1970

    @cached_property
    def model_name(self) -> str:
        return self.settings.served_model_name or self.service.model_name

    @cached_property
    def saving(self) -> SaveRoom:
        """A state for each sequence that may run or wait fits in; so only checkpoints can be too many."""
        info = self.service.info
        return SaveRoom(max(LEAST_ROOM, (info.slots + self.service.stats().max_queue) * info.bytes_per_state))

    @cached_property
    def fingerprint(self) -> str:
        """Changes with whatever may change an answer: this version, the model and its precision."""
        facts = repr((version("ostinato"), astuple(self.service.info)))
        return f"fp_{hashlib.sha256(facts.encode()).hexdigest()[:12]}"

    def check_model(self, name: str | None) -> None:
        """Raises ModelNotFoundError: the request wants another model than the served one."""
        if name is not None and name != self.model_name:
            message = f"The model {name!r} does not exist here; this server serves {self.model_name!r}."
            raise ModelNotFoundError(message, "model")

    def tokenizer_for(self, field_name: str) -> Tokenizer:
        """Raises TextNeedsTokenizerError: the model was loaded without one; the message names the field."""
        if self.service.tokenizer is None:
            message = (
                f"{field_name}: this model was loaded without a tokenizer, so text cannot be read or written. "
                "Send token ids as the prompt, with return_token_ids, or start the server with --tokenizer."
            )
            raise TextNeedsTokenizerError(message, field_name)
        return self.service.tokenizer

    async def encode(
        self, texts: Sequence[str], field_name: str, *, special: bool, continues: bool = False
    ) -> list[tuple[int, ...]]:
        """Token ids of each text, with the tokenizer's special tokens if `special`; or as the middle of a text.

        Raises:
            TextNeedsTokenizerError: there is no tokenizer.
            RequestError: the vocabulary cannot express a text.
        """
        tokenizer = self.tokenizer_for(field_name)

        def encode_all() -> list[tuple[int, ...]]:
            return [
                tuple(tokenizer.encode(text, add_special_tokens=special and not continues, continues=continues))
                for text in texts
            ]

        try:
            short = sum(map(len, texts)) <= INLINE_CHARACTERS
            if short:
                return encode_all()
            return await asyncio.get_running_loop().run_in_executor(self.tokenizing, encode_all)
        except RequestError as error:
            raise RequestError(f"{field_name}: {error}", field_name) from None

    async def encode_prompts(self, request: CompletionRequest) -> list[tuple[int, ...]]:
        """Token ids of each prompt of a completion request. Raises what `encode` does."""
        if request.prompt is None:
            if request.state is None:
                raise RequestError("prompt: Field required, unless a state is named.", "prompt")
            return [()]
        prompts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        if texts:
            special, continues = request.add_special_tokens, request.state is not None
            return await self.encode(texts, "prompt", special=special, continues=continues)
        many = [tuple(prompt) for prompt in prompts if isinstance(prompt, list)]
        return many or [tuple(token_id for token_id in prompts if isinstance(token_id, int))]

    def check_token_ids(self, ids: Sequence[int], field_name: str) -> None:
        """Raises RequestError: an id is outside of the vocabulary."""
        size = self.service.info.vocab_size
        for token_id in ids:
            if not 0 <= token_id < size:
                raise RequestError(
                    f"{field_name}: {token_id} is not a token id: the ids are 0 to {size - 1}", field_name
                )
