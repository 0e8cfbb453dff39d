"""From what a caller asks for to sequences, or an error that names the field at fault."""

from __future__ import annotations

import secrets
from collections.abc import Sequence as Items
from typing import TYPE_CHECKING

from ostinato.engine.detokenizer import TextStream
from ostinato.engine.errors import RequestError, TextNeedsTokenizerError
from ostinato.engine.types import MAX_SEED, SamplingParams, Sequence

if TYPE_CHECKING:
    from ostinato.engine.tokenizer import Tokenizer


def make_sequences(
    request_id: str,
    prompts: Items[Items[int]],
    params: SamplingParams,
    *,
    n: int = 1,
    priority: int = 0,
    vocab_size: int,
    tokenizer: Tokenizer | None,
) -> list[Sequence]:
    """n sequences for every prompt; `index` is prompt number * n + choice number.

    All share one seed, the request's or a random one: choices differ by their index.

    Raises:
        RequestError: a prompt is empty, or a token id is not in the vocabulary.
        TextNeedsTokenizerError: there are stop strings, but no tokenizer.
    """
    _check(prompts, params, n, vocab_size, tokenizer)
    seed = secrets.randbelow(MAX_SEED) if params.seed is None else params.seed
    return [
        Sequence(
            id=f"{request_id}-{index}",
            prompt=tuple(prompts[index // n]),
            params=params,
            seed=seed,
            index=index,
            priority=priority,
            text=None if tokenizer is None else TextStream(tokenizer, params.stop, params.include_stop),
        )
        for index in range(n * len(prompts))
    ]


def _check(
    prompts: Items[Items[int]], params: SamplingParams, n: int, vocab_size: int, tokenizer: Tokenizer | None
) -> None:
    if n < 1:
        raise RequestError(f"n must be at least 1, got {n}", "n")
    if not prompts or not all(prompts):
        raise RequestError("the prompt is empty: at least one token is needed", "prompt")
    if params.stop and tokenizer is None:
        raise TextNeedsTokenizerError("stop strings need a tokenizer, and none is loaded; use stop_token_ids", "stop")
    for name, ids in (
        ("logit_bias", params.logit_bias),
        ("stop_token_ids", params.stop_token_ids),
        *(("prompt", prompt) for prompt in prompts),
    ):
        wrong = next((i for i in ids if not 0 <= i < vocab_size), None)
        if wrong is not None:
            raise RequestError(f"token id {wrong} is not in the vocabulary (0 to {vocab_size - 1})", name)
