"""The sampler: against transformers' logits processors, by frequency, and independent of the batch."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ostinato.engine.errors import RequestError
from ostinato.engine.runner import StepLogits
from ostinato.engine.sampler import Sampler, choose, penalized, token_logprobs, truncated, uniform
from ostinato.engine.sampling_params import SamplingParams
from ostinato.engine.types import Chunk, Sequence, StepPlan

VOCABULARY = 50


def logits(seed: int, rows: int = 1) -> Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3


def sequence(
    params: SamplingParams, *, prompt: tuple[int, ...] = (1,), output: tuple[int, ...] = (), seed: int = 0
) -> Sequence:
    made = Sequence("s", prompt, params, seed=seed)
    for token in output:
        made.append(token)
    made.num_read = made.num_tokens - 1
    return made


def kept(row: Tensor, params: SamplingParams) -> dict[int, float]:
    """Token -> probability after truncation, renormalized."""
    ids, probabilities = truncated(torch.softmax(row.double() / params.temperature, 0), params)
    return dict(zip(ids.tolist(), (probabilities / probabilities.sum()).tolist(), strict=True))


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(top_k=1),
        SamplingParams(top_k=7, temperature=0.7),
        SamplingParams(top_k=500),
        SamplingParams(top_p=0.9),
        SamplingParams(top_p=0.05, temperature=1.7),
        SamplingParams(min_p=0.1),
        SamplingParams(min_p=1.0),
        SamplingParams(top_k=12, top_p=0.8),
        SamplingParams(top_k=20, top_p=0.95, min_p=0.05, temperature=2.0),
        SamplingParams(top_p=0.7, min_p=0.2),
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", range(5))
def test_truncation_equals_transformers(params: SamplingParams, seed: int) -> None:
    row = logits(seed).double() / params.temperature
    expected = row
    if params.top_k:
        expected = TopKLogitsWarper(min(params.top_k, VOCABULARY))(torch.empty(1, 0), expected)
    if params.top_p < 1:
        expected = TopPLogitsWarper(params.top_p)(torch.empty(1, 0), expected)
    if params.min_p:
        expected = MinPLogitsWarper(params.min_p)(torch.empty(1, 0), expected)
    probabilities = torch.softmax(expected[0], 0)
    found = kept(logits(seed)[0], params)
    assert set(found) == set(probabilities.nonzero().flatten().tolist())
    assert all(math.isclose(found[i], probabilities[i], rel_tol=1e-6) for i in found)


@pytest.mark.parametrize("penalty", [0.5, 1.3, 4.0])
def test_repetition_penalty_equals_transformers(penalty: float) -> None:
    row, seen = logits(3), [4, 9, 9, 30]
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([seen]), row.clone())[0]
    params = SamplingParams(repetition_penalty=penalty)
    found = penalized(row[0], sequence(params, prompt=(4, 9), output=(9, 30)))
    assert torch.equal(found, expected)


def test_presence_and_frequency_penalties_and_bias_follow_openai() -> None:
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, over what was generated, then the bias."""
    row = logits(4)[0]
    params = SamplingParams(presence_penalty=0.5, frequency_penalty=0.25, logit_bias={7: -100.0, 8: 2.0})
    found = penalized(row, sequence(params, prompt=(5,), output=(7, 7, 8)))
    expected = row.clone()
    expected[7] += -0.5 - 2 * 0.25 - 100
    expected[8] += -0.5 - 0.25 + 2
    assert torch.allclose(found, expected)
    assert torch.equal(row, logits(4)[0]), "the raw logits must stay as they are"


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.5, top_k=10),
        SamplingParams(top_p=0.8),
        SamplingParams(min_p=0.05),
    ],
    ids=str,
)
def test_frequencies_are_the_probabilities(params: SamplingParams) -> None:
    """Chi-square over 5,000 draws; the seeds are fixed, so the outcome is too."""
    row, draws = logits(5)[0], 5_000
    expected = kept(row, params)
    counts: dict[int, int] = dict.fromkeys(expected, 0)
    for seed in range(draws):
        counts[choose(row, sequence(params, seed=seed))] += 1
    common = {i: p for i, p in expected.items() if p * draws >= 5}
    statistic = sum((counts[i] - p * draws) ** 2 / (p * draws) for i, p in common.items())
    degrees = max(1, len(common) - 1)
    assert statistic < degrees + 5 * math.sqrt(2 * degrees)


def test_uniform_is_numpys_philox_and_depends_on_every_argument() -> None:
    expected = np.random.Generator(np.random.Philox(key=[5, 2], counter=[9, 0, 0, 0])).random()
    assert uniform(5, 2, 9) == expected
    assert len({uniform(*arguments) for arguments in ((5, 2, 9), (6, 2, 9), (5, 3, 9), (5, 2, 10), (-5, 2, 9))}) == 5


def test_temperature_zero_takes_the_most_likely() -> None:
    for seed in range(20):
        row = logits(seed)[0]
        assert choose(row, sequence(SamplingParams(temperature=0.0))) == int(row.argmax())


def test_logprobs_are_those_of_the_raw_logits() -> None:
    row = logits(6)[0]
    expected = torch.log_softmax(row.double(), 0)
    found = token_logprobs(row, 11, 3)
    assert math.isclose(found.logprob, expected[11], rel_tol=1e-9)
    assert [i for i, _ in found.top] == expected.argsort(descending=True)[:3].tolist()
    params = SamplingParams(temperature=0.2, logit_bias={11: 100.0}, logprobs=3)
    sampled = run([logits(6)], [Chunk.of(sequence(params), 1)])[0]
    assert sampled.token_id == 11
    assert sampled.logprobs == found


def run(rows: list[Tensor], chunks: list[Chunk], eos: frozenset[int] = frozenset()) -> list:
    spans, start = [], 0
    for part in rows:
        spans.append((start, start + len(part)))
        start += len(part)
    return Sampler(eos)(StepLogits(torch.cat(rows), tuple(spans)), StepPlan(tuple(chunks)))


def test_batch_mates_do_not_matter() -> None:
    variants = [
        SamplingParams(seed=1),
        SamplingParams(temperature=0.0),
        SamplingParams(top_p=0.5, logprobs=2),
        SamplingParams(top_k=3, presence_penalty=1.0),
        SamplingParams(min_p=0.2, repetition_penalty=1.5),
    ]
    rows = [logits(seed) for seed in range(len(variants))]
    chunks = [Chunk.of(sequence(params, output=(3, 4), seed=i), 1) for i, params in enumerate(variants)]
    together = run(rows, chunks)
    assert together == [run([row], [chunk])[0] for row, chunk in zip(rows, chunks, strict=True)]
    backwards = run(rows[::-1], chunks[::-1])
    assert together == backwards[::-1]


def test_below_min_tokens_nothing_that_stops_is_chosen() -> None:
    row = torch.zeros(1, VOCABULARY)
    row[0, [7, 8]] = 50.0
    row[0, 9] = 40.0
    params = SamplingParams(temperature=0.0, min_tokens=3, max_tokens=9, stop_token_ids=frozenset({8}))
    eos = frozenset({7})
    assert run([row], [Chunk.of(sequence(params, output=(1, 1)), 1)], eos)[0].token_id == 9
    assert run([row], [Chunk.of(sequence(params, output=(1, 1, 1)), 1)], eos)[0].token_id in (7, 8)


def test_prompt_scores_are_those_of_the_next_token() -> None:
    rows, params = logits(8, rows=4), SamplingParams(prompt_logprobs=1)
    whole = Sequence("s", (5, 6, 7, 8), params, seed=0)
    found = run([rows], [Chunk.of(whole, 4)])[0]
    expected = torch.log_softmax(rows.double(), -1)
    assert found.prompt_logprobs[0] is None
    assert [score.token_id for score in found.prompt_logprobs[1:]] == [6, 7, 8]
    for i, score in enumerate(found.prompt_logprobs[1:]):
        assert math.isclose(score.logprob, expected[i, score.token_id], rel_tol=1e-9)


def test_prompt_scores_in_chunks_join_to_those_of_the_whole() -> None:
    rows, params = logits(9, rows=5), SamplingParams(prompt_logprobs=2)
    whole = run([rows], [Chunk.of(Sequence("s", (1, 2, 3, 4, 5), params, seed=0), 5)])[0].prompt_logprobs
    chunked, pieces = Sequence("s", (1, 2, 3, 4, 5), params, seed=0), []
    for length in (2, 1, 2):
        start = chunked.num_read
        pieces += run([rows[start : start + length]], [Chunk.of(chunked, length)])[0].prompt_logprobs
        chunked.num_read += length
    assert tuple(pieces) == whole


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_fail_their_own_sequence_only(bad: float) -> None:
    broken = logits(1)
    broken[0, 3] = bad
    chunks = [Chunk.of(sequence(SamplingParams(temperature=0.0)), 1) for _ in range(2)]
    first, second = run([broken, logits(2)], chunks)
    assert "not finite" in first.error
    assert second.error is None
    assert second.token_id == int(logits(2).argmax())


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(top_k=3, top_p=5e-324),
        SamplingParams(top_p=5e-324),
        SamplingParams(temperature=1e-308, top_k=3),
        SamplingParams(temperature=1e-308, min_p=0.5),
        SamplingParams(temperature=5e-324),
    ],
    ids=str,
)
def test_extreme_values_come_down_to_the_most_likely(params: SamplingParams) -> None:
    for seed in range(10):
        row = logits(seed)[0]
        assert choose(row, sequence(params, seed=seed)) == int(row.argmax())


def test_extreme_penalties_stay_finite() -> None:
    row = logits(2) * 1000
    for penalty in (0.01, 100.0):
        params = SamplingParams(repetition_penalty=penalty, top_k=3)
        found = run([row], [Chunk.of(sequence(params, prompt=tuple(range(50)), output=(3,)), 1)])[0]
        assert found.error is None


def test_when_every_token_would_stop_too_early_the_sequence_fails_alone() -> None:
    params = SamplingParams(min_tokens=3, top_k=2, stop_token_ids=frozenset(range(VOCABULARY)))
    chunks = [Chunk.of(sequence(params), 1), Chunk.of(sequence(SamplingParams(temperature=0.0)), 1)]
    first, second = run([logits(1), logits(2)], chunks)
    assert "no token may be chosen" in first.error
    assert second.token_id == int(logits(2).argmax())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"repetition_penalty": 1e-38}, r"repetition_penalty must be in \[0.01, 100\]"),
        ({"seed": 2**63}, "seed must be in .*9223372036854775807"),
        ({"seed": 1.5}, "seed must be an integer"),
        ({"max_tokens": True}, "max_tokens must be an integer"),
        ({"temperature": True}, "temperature must be a number"),
        ({"top_p": "1"}, "top_p must be a number"),
        ({"include_stop": float("nan")}, "include_stop must be true or false"),
        ({"ignore_eos": 1}, "ignore_eos must be true or false"),
        ({"stop": (1,)}, "stop must be a tuple of strings"),
        ({"stop_token_ids": frozenset({1.5})}, "stop_token_ids: token ids must be integers"),
        ({"logit_bias": {"1": 1.0}}, "logit_bias: token ids must be integers"),
        ({"logit_bias": {1: True}}, "logit_bias must be a number"),
        ({"stop": "abc"}, "tuple of strings"),
        ({"stop": ("",)}, "must not be empty"),
        ({"temperature": math.nan}, "temperature must be in"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\]"),
        ({"min_tokens": 17}, "min_tokens must be in"),
        ({"logprobs": 21}, "logprobs must be in"),
        ({"logit_bias": {1: 101.0}}, "logit_bias must be in"),
    ],
)
def test_values_out_of_range_are_refused_by_name(values: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        SamplingParams(**values)
    assert caught.value.field == next(iter(values))
