"""From what a caller asks for to sequences, or an error that names the field at fault."""

from __future__ import annotations

import secrets
from collections.abc import Sequence as Items
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from ostinato.engine.continuation import FRESH, Continuation
from ostinato.engine.errors import RequestError, TextNeedsTokenizerError
from ostinato.engine.events import Reuse
from ostinato.engine.keeping import Keep
from ostinato.engine.sampling_params import MAX_SEED, SamplingParams
from ostinato.engine.text.detokenizer import TextStream
from ostinato.engine.types import NOT_BEGUN, Sequence

if TYPE_CHECKING:
    from ostinato.engine.snapshots import Snapshot
    from ostinato.engine.text.tokenizer import Tokenizer


MOST_SCORES = 1 << 20  # log-probabilities of prompt tokens in one answer: some hundred megabytes


def make_sequences(
    request_id: str,
    prompts: Items[Items[int]],
    params: SamplingParams,
    *,
    n: int = 1,
    priority: int = 0,
    vocab_size: int,
    tokenizer: Tokenizer | None,
    states: Continuation = FRESH,
    encoder_length: int = 0,
) -> list[Sequence]:
    """n sequences for every prompt; `index` is prompt number * n + choice number.

    All share one seed, the request's or a random one: choices differ by their index. The first of the n reads the
    prompt; the others start from the state at its end, unless every choice is to score the prompt. With a snapshot to
    go on from, an empty prompt goes on with its answer. encoder_length: of the model, see `StateSpec`.

    Raises:
        RequestError: a prompt is empty, or a token id is not in the vocabulary, or a penalty needs a log that is not
            known, or a checkpoint lies inside of the encoder region; or the state to go on from was made with another
            mitigation.
        TextNeedsTokenizerError: there are stop strings, but no tokenizer.
    """
    _check(prompts, params, n, vocab_size, tokenizer, states.start)
    if states.start is None:
        _check_checkpoints(states.checkpoints, min(encoder_length, max(map(len, prompts))))
    seed = secrets.randbelow(MAX_SEED) if params.seed is None else params.seed
    made = []
    for number, prompt in enumerate(prompts):
        stops = states.stops[number] if states.stops else frozenset()
        choices = [
            _sequence(f"{request_id}-{index}", tuple(prompt), params, seed, index, priority, tokenizer, states, stops)
            for index in range(n * number, n * number + n)
        ]
        if params.prompt_logprobs is None:
            choices[0].followers = choices[1:]
            for follower in choices[1:]:
                follower.held_back = True
        made += choices
    return made


def _sequence(
    name: str,
    prompt: tuple[int, ...],
    params: SamplingParams,
    seed: int,
    index: int,
    priority: int,
    tokenizer: Tokenizer | None,
    states: Continuation,
    stops: frozenset[int],
) -> Sequence:
    initial = None if states.initial is None else states.initial.digest
    mitigation, guard = states.effective_mitigation, states.guarded()
    sequence = Sequence(
        id=name,
        prompt=prompt,
        params=params,
        seed=seed,
        index=index,
        priority=priority,
        text=None if tokenizer is None else TextStream(tokenizer, params.stop, params.include_stop),
        scope=_scope(_scope(states.scope, mitigation.key or None), initial),
        initial=None if states.initial is None else states.initial.state,
        initial_digest=initial,
        keep=_completed(states.keep, states, tokenizer),
        park=_completed(states.park, states, tokenizer),
        checkpoints=states.checkpoints,
        stops=set(stops),
        region=states.region,
        mitigation=mitigation,
        guard=guard,
        beats=mitigation.beats if guard is None else (*mitigation.beats, guard.options.every),
    )
    return sequence if states.start is None else _from_snapshot(sequence, states.start)


def _completed(keep: Keep | None, states: Continuation, tokenizer: Tokenizer | None) -> Keep | None:
    if keep is None:
        return None
    encode = None if tokenizer is None else partial(tokenizer.encode, add_special_tokens=False, continues=True)
    return replace(keep, parent=states.parent, encode=encode)


def _behind(keep: Keep | None, start: Snapshot, *, goes_on: bool) -> Keep | None:
    """What is to be kept of a sequence behind a snapshot. goes_on: in the middle of its answer."""
    if keep is None:
        return None
    open_turn = start.open_turn if goes_on else keep.open_turn
    return replace(keep, open_turn=open_turn, before=start.log if start.log.tokens is None else None)


def _scope(scope: str | None, other: str | None) -> str | None:
    """The same tokens behind different initial states, or with different mitigations, are different states."""
    return scope if scope is None or other is None else f"{scope}/{other}"


def _from_snapshot(sequence: Sequence, start: Snapshot) -> Sequence:
    """The same sequence behind the snapshot's log, and with an empty prompt in the middle of its answer."""
    resumed = NOT_BEGUN if sequence.prompt else start.generation
    known = start.log.tokens
    if sequence.text is not None:
        sequence.text.resume(resumed.held, resumed.partial)
    return replace(
        sequence,
        prompt=sequence.prompt if known is None else (*known, *sequence.prompt),
        base=start.log.length if known is None else 0,
        origin=start.state,
        reuse=Reuse.STATE,
        resumed=resumed,
        output_counts=dict(resumed.counts),
        scope=None if known is None else _scope(sequence.scope, start.initial),
        initial_digest=start.initial,
        region=start.region,
        keep=_behind(sequence.keep, start, goes_on=not sequence.prompt),
        park=_behind(sequence.park, start, goes_on=not sequence.prompt),
    )


def _check_checkpoints(checkpoints: frozenset[int], region: int) -> None:
    inside = min(checkpoints, default=region)
    if inside < region:
        raise RequestError(
            f"no state can be kept after {inside} tokens: the first {region} tokens of this prompt are read at once "
            "(the model's encoder region), so there is no state inside of them",
            "checkpoints",
        )


def _check_scores(prompts: Items[Items[int]], params: SamplingParams, n: int) -> None:
    """They all stay in memory until the answer is complete."""
    if params.prompt_logprobs is None:
        return
    wanted = n * sum(map(len, prompts)) * (1 + params.prompt_logprobs)
    if wanted > MOST_SCORES:
        raise RequestError(
            f"prompt_logprobs: {wanted} log-probabilities are more than the {MOST_SCORES} that one request may ask for",
            "prompt_logprobs",
        )


def _check(
    prompts: Items[Items[int]],
    params: SamplingParams,
    n: int,
    vocab_size: int,
    tokenizer: Tokenizer | None,
    start: Snapshot | None,
) -> None:
    if n < 1:
        raise RequestError(f"n must be at least 1, got {n}", "n")
    if not prompts or (start is None and not all(prompts)):
        raise RequestError("the prompt is empty: at least one token is needed", "prompt")
    _check_scores(prompts, params, n)
    if params.stop and tokenizer is None:
        raise TextNeedsTokenizerError("stop strings need a tokenizer, and none is loaded; use stop_token_ids", "stop")
    if start is not None and start.log.tokens is None and params.repetition_penalty != 1.0:
        raise RequestError(
            "the repetition penalty needs the tokens of the state, which was stored without them (private): "
            "use presence_penalty or frequency_penalty",
            "repetition_penalty",
        )
    for name, ids in (
        ("logit_bias", params.logit_bias),
        ("stop_token_ids", params.stop_token_ids),
        *(("prompt", prompt) for prompt in prompts),
    ):
        wrong = next((i for i in ids if not 0 <= i < vocab_size), None)
        if wrong is not None:
            raise RequestError(f"token id {wrong} is not in the vocabulary (0 to {vocab_size - 1})", name)
