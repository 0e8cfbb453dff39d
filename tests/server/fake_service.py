"""A stand-in for the engine's service, for tests of the wire alone: deterministic, instant, no model.

The reply to a prompt is its tokens in reverse order, repeated. The tokenizer is one token a byte.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from ostinato.engine.chat_template import render_default
from ostinato.engine.errors import EngineStoppedError, QueueFullError, RequestError
from ostinato.engine.types import FinishReason, SamplingParams, TokenEvent, TokenLogprobs


class ByteTokenizer:
    vocab_size = 256
    eos_token_id = None
    bos_token_id = None
    chat_template = None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True, continues: bool = False) -> str:
        return bytes(ids).decode(errors="replace")

    def piece(self, token_id: int, *, first: bool = False) -> bytes:
        return bytes([token_id])

    token_bytes = piece

    def token_text(self, token_id: int) -> str:
        return self.decode([token_id])

    def apply_chat_template(self, messages, *, add_generation_prompt: bool) -> str:
        return render_default(messages, add_generation_prompt=add_generation_prompt)


@dataclass(frozen=True)
class FakeInfo:
    model: str = "fake"
    architecture: str = "FakeForCausalLM"
    family: str = "fake"
    vocab_size: int = 256
    dtype: str = "float32"
    state_dtype: str = "float32"
    bytes_per_state: int = 1024
    slots: int = 4
    weight_bytes: int = 10
    eos_token_ids: frozenset[int] = frozenset()


@dataclass
class FakeStats:
    slots: int = 4
    slots_used: int = 0
    running: int = 0
    waiting: int = 0
    max_queue: int = 8
    prompt_tokens_total: int = 0
    generated_tokens_total: int = 0
    steps_total: int = 0
    step_seconds_total: float = 0.0
    finished: dict[str, int] = field(default_factory=dict)


class FakeStream:
    def __init__(self, service: FakeService, events: list[TokenEvent]) -> None:
        self.service, self.events, self.closed = service, events, False
        service.counts.slots_used += 1

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        if not self.closed:
            self.closed = True
            self.service.counts.slots_used -= 1

    def __aiter__(self) -> AsyncIterator[TokenEvent]:
        return self

    async def __anext__(self) -> TokenEvent:
        await asyncio.sleep(self.service.delay)
        if not self.events:
            raise StopAsyncIteration
        event = self.events.pop(0)
        if isinstance(event, Exception):
            raise event
        return event


class FakeService:
    def __init__(self, *, tokenizer: ByteTokenizer | None = ByteTokenizer(), delay: float = 0.0) -> None:
        self.tokenizer = tokenizer
        self.model_name = "fake"
        self.info = FakeInfo()
        self.counts = FakeStats()
        self.delay = delay
        self.ready = self.healthy = False
        self.error_at: int | None = None
        self.full = False

    def start(self) -> None:
        self.ready = self.healthy = True

    async def stop(self) -> None:
        self.ready = self.healthy = False

    def stats(self) -> FakeStats:
        return self.counts

    def submit(self, request_id, prompts, params: SamplingParams, *, n: int = 1, priority: int = 0) -> FakeStream:
        if not self.ready:
            raise EngineStoppedError("stopped")
        if self.full:
            raise QueueFullError("the queue is full", 2.5)
        for prompt in prompts:
            if not prompt:
                raise RequestError("the prompt is empty", "prompt")
            for token_id in prompt:
                if not 0 <= token_id < 256:
                    raise RequestError(f"{token_id} is not in the vocabulary", "prompt")
        events = [e for i, p in enumerate(prompts) for j in range(n) for e in self._events(p, params, i * n + j)]
        return FakeStream(self, events)

    def _events(self, prompt, params: SamplingParams, index: int) -> list[TokenEvent]:
        events = []
        if params.prompt_logprobs is not None:
            first = (None, *(self._logprobs(t, params.prompt_logprobs) for t in prompt[1:]))
            events.append(TokenEvent("s", index, prompt_logprobs=first))
        for count in range(params.max_tokens):
            token = prompt[-1 - count % len(prompt)]
            if self.error_at == count:
                return [*events, TokenEvent("s", index, finish_reason=FinishReason.ERROR, error="engine step failed")]
            events.append(
                TokenEvent(
                    "s",
                    index,
                    (token,),
                    "" if self.tokenizer is None else chr(token),
                    () if params.logprobs is None else (self._logprobs(token, params.logprobs),),
                    finish_reason=FinishReason.LENGTH if count + 1 == params.max_tokens else None,
                )
            )
        if not params.max_tokens:
            events.append(TokenEvent("s", index, finish_reason=FinishReason.LENGTH))
        return events

    @staticmethod
    def _logprobs(token: int, top: int) -> TokenLogprobs:
        return TokenLogprobs(token, -0.5, tuple((token + i, -0.5 - i) for i in range(top)))
