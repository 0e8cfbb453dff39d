"""Chooses tokens from logits. Every row is handled by itself, so batch mates cannot change a choice.

Random numbers are a function of (seed, choice index, position), from the counter-based generator Philox (Salmon et
al. 2011): the same seed gives the same tokens in any batch, and there is no generator state to keep.
"""

import logging
import math

import numpy as np
import torch
from torch import Tensor

from ostinato.engine.events import Fault, Sampled, TokenLogprobs
from ostinato.engine.runner import StepLogits
from ostinato.engine.sampling_params import SamplingParams
from ostinato.engine.stopping import stop_tokens
from ostinato.engine.types import Chunk, Sequence, StepPlan

logger = logging.getLogger(__name__)


class Sampler:
    """Callable: logits and plan to one `Sampled` per chunk."""

    def __init__(self, eos_token_ids: frozenset[int]) -> None:
        self._eos_token_ids = eos_token_ids

    @torch.inference_mode()
    def __call__(self, logits: StepLogits, plan: StepPlan) -> list[Sampled]:
        finite = torch.isfinite(logits.rows.sum(dim=1)).tolist()  # for all at once: a call takes longer than a row
        return [
            self._sample_alone(logits.rows[start:stop], all(finite[start:stop]), chunk)
            for chunk, (start, stop) in zip(plan.chunks, logits.spans, strict=True)
        ]

    def _sample_alone(self, rows: Tensor, finite: bool, chunk: Chunk) -> Sampled:
        """Whatever goes wrong with one sequence must not end the others."""
        try:
            return self._sample(rows, finite, chunk)
        except Exception as error:
            logger.exception("sampling for %s failed", chunk.sequence.id)
            return Sampled(error=f"sampling failed: {error}")

    def _sample(self, rows: Tensor, finite: bool, chunk: Chunk) -> Sampled:
        if not finite:
            return Sampled(error="the model's logits are not finite", fault=Fault.LOGITS)
        prompt_logprobs = score_prompt(rows, chunk) if chunk.scores_prompt else ()
        if not chunk.samples:
            return Sampled(prompt_logprobs=prompt_logprobs)
        sequence, raw = chunk.sequence, rows[-1]
        adjusted = self._adjusted(raw, sequence)
        if adjusted is not raw and adjusted.max() == -math.inf:
            return Sampled(error="no token may be chosen: all of them would stop the text before min_tokens")
        token_id = choose(adjusted, sequence)
        count = sequence.params.logprobs
        return Sampled(
            token_id=token_id,
            logprobs=None if count is None else token_logprobs(raw, token_id, count),
            prompt_logprobs=prompt_logprobs,
        )

    def _adjusted(self, raw: Tensor, sequence: Sequence) -> Tensor:
        """Logits after penalties, bias and, below min_tokens, without the tokens that would stop."""
        row = penalized(raw, sequence)
        if not sequence.allows_stop:
            banned = [i for i in stop_tokens(sequence, self._eos_token_ids) if i < row.shape[0]]
            row = row.index_fill(0, torch.tensor(banned, dtype=torch.long), -math.inf)
        return row


def penalized(row: Tensor, sequence: Sequence) -> Tensor:
    """Applies the repetition penalty, then the presence and frequency penalties, then the bias.

    row: [V] fp32, left as it is. Sources: Keskar et al. 2019 (CTRL), section 4.1, in transformers' variant, which
    multiplies negative logits instead of dividing them; OpenAI's API reference.
    """
    params = sequence.params
    if params.repetition_penalty != 1.0:
        seen = torch.tensor([*sequence.prompt_ids.union(sequence.output_counts)], dtype=torch.long)
        value, factor = row[seen], params.repetition_penalty
        row = row.index_copy(0, seen, torch.where(value > 0, value / factor, value * factor))
    if (params.presence_penalty or params.frequency_penalty) and sequence.output_counts:
        ids = torch.tensor(list(sequence.output_counts), dtype=torch.long)
        counts = torch.tensor(list(sequence.output_counts.values()), dtype=torch.float32)
        row = row.index_copy(0, ids, row[ids] - params.presence_penalty - params.frequency_penalty * counts)
    if params.logit_bias:
        ids = torch.tensor(list(params.logit_bias), dtype=torch.long)
        row = row.index_add(0, ids, torch.tensor(list(params.logit_bias.values()), dtype=torch.float32))
    return row


def choose(row: Tensor, sequence: Sequence) -> int:
    """The next token: the most likely one at temperature 0, otherwise one draw. row: [V] fp32."""
    params = sequence.params
    if params.temperature == 0.0:
        return int(row.numpy().argmax())  # the first of the largest; PyTorch's looks at one element at a time
    # Relative to the best, so that no temperature, however small, can overflow.
    probabilities = torch.softmax((row.double() - row.max().double()) / params.temperature, dim=0)
    ids, kept = truncated(probabilities, params)
    cumulative = kept.cumsum(0)
    index, position = sequence.index + sequence.resumed.index, sequence.num_generated
    draw = uniform(sequence.seed, index, position) * float(cumulative[-1])
    position = int(torch.searchsorted(cumulative, draw, right=True))
    return int(ids[min(position, len(ids) - 1)])


def truncated(probabilities: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """The tokens that top_k, top_p and min_p leave, and their probabilities (not renormalized).

    probabilities: [V] fp64. Each rule sees what the one before left; among equals, the lower id counts as more likely.
    Sources: Holtzman et al. 2019 (top_p, section 3.1); Nguyen et al. 2024 (min_p, section 3).
    """
    if not (params.top_k or params.top_p < 1.0 or params.min_p > 0.0):
        return torch.arange(probabilities.shape[0]), probabilities
    ids = _candidates(probabilities, params)
    kept, order = probabilities[ids].sort(descending=True, stable=True)
    ids = ids[order]
    if params.top_k:
        ids, kept = ids[: params.top_k], kept[: params.top_k]
    if params.top_p < 1.0:
        mass = kept.cumsum(0)
        count = max(1, int((mass - kept < params.top_p * _total(mass, params)).sum()))
        ids, kept = ids[:count], kept[:count]
    if params.min_p > 0.0:
        count = int((kept >= params.min_p * kept[0]).sum())
        ids, kept = ids[:count], kept[:count]
    return ids, kept


def _total(mass: Tensor, params: SamplingParams) -> float:
    """What the nucleus is a share of: all tokens, or those that top_k left."""
    return float(mass[-1]) if params.top_k else 1.0


def _candidates(probabilities: Tensor, params: SamplingParams) -> Tensor:
    """A superset of the tokens that survive, small enough to sort.

    Tokens below (1 - top_p) / V together weigh less than 1 - top_p, so none of them is in the nucleus.
    """
    if params.top_k:
        return _at_least(probabilities, float(probabilities.topk(min(params.top_k, probabilities.shape[0])).values[-1]))
    nucleus = (1.0 - params.top_p) / probabilities.shape[0]
    return _at_least(probabilities, max(nucleus, params.min_p * float(probabilities.max())))


def _at_least(probabilities: Tensor, floor: float) -> Tensor:
    return (probabilities >= floor).nonzero().squeeze(1)


def uniform(seed: int, index: int, position: int) -> float:
    """A number in [0, 1) that depends on nothing but its arguments."""
    key = np.array([seed % 2**64, index], dtype=np.uint64)
    counter = np.array([position, 0, 0, 0], dtype=np.uint64)
    return float(np.random.Generator(np.random.Philox(key=key, counter=counter)).random())


def token_logprobs(row: Tensor, token_id: int, count: int) -> TokenLogprobs:
    """Log-probability of a token under the raw logits, and of the `count` most likely ones. row: [V] fp32."""
    logprobs = torch.log_softmax(row.double(), dim=0)
    values, ids = logprobs.topk(min(count, row.shape[0]))
    return TokenLogprobs(token_id, float(logprobs[token_id]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))


def score_prompt(rows: Tensor, chunk: Chunk) -> tuple[TokenLogprobs | None, ...]:
    """Scores of the prompt tokens that a chunk's logits predict; None for the first token of a text.

    rows: [length, V]; row i was computed from the log up to and including token num_read + i. In an encoder region all
    rows have seen all of it: its tokens are not predicted, and have None.
    """
    sequence = chunk.sequence
    start, prompt = sequence.num_read - sequence.base, sequence.prompt
    count = sequence.params.prompt_logprobs or 0
    unpredicted = max(1, sequence.region) if sequence.num_read == 0 else 0
    first = max(1, unpredicted)
    predicted = prompt[start + first : start + 1 + chunk.length]
    scores = [token_logprobs(row, token_id, count) for row, token_id in zip(rows[first - 1 :], predicted, strict=False)]
    if unpredicted:
        return (*[None] * unpredicted, *scores)
    if sequence.origin is None or sequence.origin.logits is None:
        return tuple(scores)
    return (token_logprobs(sequence.origin.logits, prompt[start], count), *scores)  # the state predicted the first one
