"""Offline generation:

from ostinato.engine.llm import LLM
from ostinato.engine.sampling_params import SamplingParams

llm = LLM("path/or/hub-id")
for completion in llm.generate(["Once upon a time"], SamplingParams(max_tokens=50)):
    print(completion.text)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Any

from ostinato.engine.admission import make_sequences
from ostinato.engine.config import EngineConfig
from ostinato.engine.continuation import Continuation, with_defaults
from ostinato.engine.errors import StepError, TextNeedsTokenizerError
from ostinato.engine.events import FinishReason, TokenEvent, TokenLogprobs
from ostinato.engine.initial_states import choose_initial_state
from ostinato.engine.loading import load_engine
from ostinato.engine.sampling_params import SamplingParams
from ostinato.engine.types import Sequence
from ostinato.models.checkpoint import Progress


@dataclass(slots=True)
class Completion:
    """What became of one prompt. `text` is empty where no tokenizer is loaded."""

    prompt_token_ids: tuple[int, ...]
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None

    def extend(self, event: TokenEvent) -> None:
        """Takes in one event. Raises StepError if it says that the sequence failed."""
        if event.error is not None:
            raise StepError(event.error)
        self.text += event.text
        self.token_ids += event.token_ids
        self.logprobs += event.logprobs
        self.prompt_logprobs += event.prompt_logprobs
        self.finish_reason, self.stop_reason = event.finish_reason, event.stop_reason


class LLM:
    """A model in this process.

    Args:
        model: folder, `.pth` file or hub id.
        progress: called while the weights are read.
        options: the other fields of `EngineConfig`.

    Raises:
        OstinatoError: see `ostinato.engine.loading.load_engine`.
    """

    def __init__(self, model: str, *, progress: Progress | None = None, **options: Any) -> None:
        loaded = load_engine(EngineConfig(model=model, **options), progress)
        self.info = loaded.info
        self.tokenizer = loaded.tokenizer
        self._engine = loaded.engine
        states = Continuation(initial=choose_initial_state(loaded.initial_states, None))
        self._states = with_defaults(states, loaded.info, loaded.guard)

    def generate(
        self, prompts: Items[str | Items[int]], params: SamplingParams | Items[SamplingParams] | None = None
    ) -> list[Completion]:
        """Completes all prompts (texts, or token ids) in as few steps as the slots allow.

        params: for all, or one for each prompt. Returns one completion per prompt, in order.

        Raises:
            RequestError: a prompt is empty, holds unknown token ids, or is text without a tokenizer.
            StepError: the model failed.
        """
        if isinstance(prompts, str):
            raise TypeError("prompts must be a list: of texts, or of lists of token ids")
        each = [params or SamplingParams()] * len(prompts) if not isinstance(params, Items) else list(params)
        if len(each) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts, but {len(each)} sampling parameters")
        sequences = [self._sequence(str(i), prompt, p) for i, (prompt, p) in enumerate(zip(prompts, each, strict=True))]
        completions = {sequence.id: Completion(sequence.prompt) for sequence in sequences}
        for event in self._run(sequences):
            completions[event.sequence_id].extend(event)
        return list(completions.values())

    def stream(
        self, prompt: str | Items[int], params: SamplingParams | None = None
    ) -> Generator[TokenEvent, None, None]:
        """Completes one prompt, event by event. Leaving the iterator early frees its slot."""
        yield from self._run([self._sequence("stream", prompt, params or SamplingParams())])

    def _sequence(self, request_id: str, prompt: str | Items[int], params: SamplingParams) -> Sequence:
        (sequence,) = make_sequences(
            request_id,
            [self._token_ids(prompt)],
            params,
            vocab_size=self.info.vocab_size,
            tokenizer=self.tokenizer,
            states=self._states,
        )
        return sequence

    def _token_ids(self, prompt: str | Items[int]) -> Items[int]:
        if not isinstance(prompt, str):
            return prompt
        if self.tokenizer is None:
            raise TextNeedsTokenizerError("the model has no tokenizer: pass one, or token ids as prompt", "prompt")
        return self.tokenizer.encode(prompt)

    def _run(self, sequences: list[Sequence]) -> Iterator[TokenEvent]:
        """Queues as many at a time as there is room for, and ends what is left when the caller stops listening."""
        if self._engine.has_work:
            raise RuntimeError("a stream of this LLM is still open: exhaust or close it first")
        pending = deque(sequences)
        try:
            while pending or self._engine.has_work:
                room = min(self._engine.scheduler.room(), len(pending))
                self._engine.add([pending.popleft() for _ in range(room)])
                yield from self._engine.step()
        finally:
            for sequence in self._engine.scheduler.unfinished():
                self._engine.abort(sequence)
