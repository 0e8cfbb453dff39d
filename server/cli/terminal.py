"""One text at a time on the terminal: what `ostinato generate` and `ostinato chat` run on."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from ostinato.engine.errors import TextNeedsTokenizerError
from ostinato.engine.llm import LLM, Completion
from ostinato.engine.sampling_params import SamplingParams
from ostinato.server.cli.console import loading_bar
from ostinato.server.cli.options import model_path

if TYPE_CHECKING:
    from types import FrameType

    from ostinato.engine.text.tokenizer import Tokenizer


class TextModel:
    """A loaded model with its tokenizer, and one slot. The options are those of `EngineConfig`.

    Raises:
        OstinatoError: the model cannot be loaded, or has no tokenizer.
    """

    def __init__(
        self,
        model: str,
        *,
        tokenizer: str | None,
        device: str,
        dtype: str,
        threads: int | None,
        batch_invariant: bool,
        cuda_graphs: bool,
    ) -> None:
        self.name = model
        with loading_bar() as report:
            self._llm = LLM(
                model_path(model),
                progress=report,
                tokenizer=tokenizer,
                device=device,
                dtype=dtype,
                threads=threads,
                batch_invariant=batch_invariant,
                cuda_graphs=cuda_graphs,
                max_batch=1,
            )
        if self._llm.tokenizer is None:
            raise TextNeedsTokenizerError(f"{model} has no tokenizer: name one with --tokenizer PATH_OR_ID")
        self.tokenizer: Tokenizer = self._llm.tokenizer

    def answer(self, prompt: Sequence[int], params: SamplingParams, *, show: bool = True) -> Completion:
        """Continues the prompt, writing each piece of text to stdout as it comes. Ctrl-C ends it: then the completion
        holds what came before, and no finish reason.

        Raises:
            RequestError: the prompt is empty. StepError: the model failed.
        """
        completion = Completion(tuple(prompt))
        with closing(self._llm.stream(prompt, params)) as events, _interrupts() as interrupted:
            for event in events:
                completion.extend(event)
                if show and event.text:
                    sys.stdout.write(event.text)
                    sys.stdout.flush()
                if interrupted:
                    break
        return completion


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collects Ctrl-C instead of raising: an exception in the middle of a step would leave the engine in between."""
    caught: list[int] = []

    def remember(number: int, _frame: FrameType | None) -> None:
        caught.append(number)

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield caught
    finally:
        signal.signal(signal.SIGINT, before)
