"""Going on from a state is the same as never having stopped: tokens, log-probabilities and text, bit for bit."""

import functools

import pytest
import torch

from ostinato.engine.admission import make_sequences
from ostinato.engine.config import EngineConfig
from ostinato.engine.continuation import Continuation
from ostinato.engine.events import Reuse, TokenEvent
from ostinato.engine.keeping import Keep
from ostinato.engine.loading import LoadedEngine, load_engine
from ostinato.engine.sampling_params import SamplingParams
from ostinato.engine.snapshots import Snapshot
from ostinato.engine.types import Sequence
from tests.models.test_contract import CHECKPOINTS, WINDOWS

STORE = Continuation(keep=Keep())
MODES = {
    "greedy": {"temperature": 0.0},
    "seeded": {"temperature": 1.3, "seed": 5, "top_p": 0.95},
    "penalized": {
        "temperature": 1.0,
        "seed": -3,
        "repetition_penalty": 1.3,
        "presence_penalty": 0.7,
        "frequency_penalty": 0.4,
    },
}
each_architecture = pytest.mark.parametrize("architecture", sorted(CHECKPOINTS))


@functools.cache
def loaded(architecture: str, cache: int = 0) -> LoadedEngine:
    """Windows are shorter than what the tests read."""
    return load_engine(
        EngineConfig(
            str(CHECKPOINTS[architecture]),
            max_batch=20,
            max_step_tokens=37,
            prefix_cache=cache,
            dtype="float32",
            attention_window=WINDOWS.get(architecture),
        )
    )


def sequences(
    engine: LoadedEngine, name: str, prompt: list[int], params: SamplingParams, **given: object
) -> list[Sequence]:
    return make_sequences(
        name, [prompt], params, vocab_size=engine.info.vocab_size, tokenizer=engine.tokenizer, **given
    )


def run(engine: LoadedEngine, *groups: list[Sequence]) -> dict[str, list[TokenEvent]]:
    """Runs to the end. Returns the events of each sequence."""
    events: dict[str, list[TokenEvent]] = {sequence.id: [] for group in groups for sequence in group}
    for group in groups:
        engine.engine.add(group)
    while engine.engine.has_work:
        for event in engine.engine.step():
            assert event.error is None, event
            events[event.sequence_id].append(event)
    return events


def outcome(events: list[TokenEvent]) -> tuple[list[int], list[object], str]:
    return (
        [token for event in events for token in event.token_ids],
        [entry for event in events for entry in event.logprobs],
        "".join(event.text for event in events),
    )


def last_snapshot(engine: LoadedEngine, events: list[TokenEvent]) -> Snapshot:
    """The one at the end, as it comes back from a file."""
    assert all(event.finish_reason is None for event in events[:-1])
    return engine.snapshots.decode(engine.snapshots.encode(events[-1].snapshots[-1]))


def crowd(engine: LoadedEngine, count: int) -> list[Sequence]:
    """Others in the batch, of several lengths."""
    made = []
    for i in range(count):
        prompt = [(7 * i + j) % engine.info.vocab_size for j in range(1 + 9 * i)]
        made += sequences(engine, f"mate{i}", prompt, SamplingParams(max_tokens=3 + 2 * i, seed=i, ignore_eos=True))
    return made


@each_architecture
@pytest.mark.parametrize("mode", MODES)
def test_stopping_anywhere_and_going_on_changes_nothing(architecture: str, mode: str) -> None:
    engine = loaded(architecture)
    prompt = [token % engine.info.vocab_size for token in range(3, 60)]
    options = {**MODES[mode], "ignore_eos": True, "logprobs": 2}
    whole = run(engine, sequences(engine, "w", prompt, SamplingParams(max_tokens=12, **options)))["w-0"]
    for cut in (0, 1, 5, 11):
        first = sequences(engine, "a", prompt, SamplingParams(max_tokens=cut, **options), states=STORE)
        before = run(engine, first, crowd(engine, 3))["a-0"]
        start = Continuation(start=last_snapshot(engine, before))
        rest = sequences(engine, "b", [], SamplingParams(max_tokens=12 - cut, **options), states=start)
        after = run(engine, crowd(engine, 4), rest)["b-0"]
        joined = [left + right for left, right in zip(outcome(before), outcome(after), strict=True)]
        assert joined[:2] == list(outcome(whole)[:2]), f"cut at {cut}"
        assert joined[2] == outcome(whole)[2] or engine.tokenizer is None, f"cut at {cut}"
        assert after[-1].reused == len(prompt) + cut
        assert after[-1].reuse is Reuse.STATE


@each_architecture
def test_a_next_prompt_from_a_state_equals_the_whole_prompt(architecture: str) -> None:
    engine = loaded(architecture)
    prompt = [token % engine.info.vocab_size for token in range(3, 80)]
    params = SamplingParams(max_tokens=6, temperature=1.0, seed=1, ignore_eos=True, logprobs=0, repetition_penalty=1.2)
    whole = run(engine, sequences(engine, "w", prompt, params))["w-0"]
    for cut in (max(1, engine.info.encoder_length), 40, 76):
        read = sequences(engine, "r", prompt[:cut], SamplingParams(max_tokens=0), states=STORE)
        start = Continuation(start=last_snapshot(engine, run(engine, read)["r-0"]))
        tokens_before = engine.engine.tokens_read
        after = run(engine, sequences(engine, "c", prompt[cut:], params, states=start))["c-0"]
        assert outcome(after) == outcome(whole)
        assert engine.engine.tokens_read - tokens_before == len(prompt) - cut + 5, "something was read twice"


@each_architecture
def test_sixteen_choices_equal_sixteen_runs_and_read_the_prompt_once(architecture: str) -> None:
    engine = loaded(architecture)
    prompt = [token % engine.info.vocab_size for token in range(50)]
    params = SamplingParams(max_tokens=5, temperature=1.0, seed=9, ignore_eos=True, logprobs=1)
    before = engine.engine.tokens_read
    together = run(engine, sequences(engine, "f", prompt, params, n=16))
    assert engine.engine.tokens_read - before == len(prompt) + 16 * 4
    for index in range(16):
        (alone,) = sequences(engine, "a", prompt, params)
        alone.index = index
        assert outcome(together[f"f-{index}"]) == outcome(run(engine, [alone])["a-0"]), f"choice {index}"
    assert len({tuple(outcome(events)[0]) for events in together.values()}) > 8, "the choices hardly differ"


@each_architecture
def test_a_cached_prefix_changes_nothing_and_is_not_read_again(architecture: str) -> None:
    engine, plain = loaded(architecture, 10**9), loaded(architecture)
    mine = Continuation(scope="me")
    params = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True, logprobs=1)
    prompt = [token % engine.info.vocab_size for token in range(5, 65)]
    first = run(engine, sequences(engine, "a", prompt, params, states=mine))["a-0"]
    assert (first[-1].reuse, first[-1].reused) == (Reuse.MISS, 0)
    again = run(engine, sequences(engine, "b", prompt, params, states=mine))["b-0"]
    assert (again[-1].reuse, again[-1].reused) == (Reuse.HIT, len(prompt))
    longer = [*prompt, *outcome(first)[0], 1, 2, 3]
    turn = run(engine, sequences(engine, "c", longer, params, states=mine))["c-0"]
    assert turn[-1].reused == len(prompt) + 3, "the reply was not kept up to its last token, which nobody has read"
    for i, expected in enumerate((0, 30, 30)):  # nothing at the parting; then a state there, once it had been seen
        parted = [*prompt[:30], i, *range(20)]
        assert run(engine, sequences(engine, "d", parted, params, states=mine))["d-0"][-1].reused == expected
    other = run(engine, sequences(engine, "e", prompt, params, states=Continuation(scope="other")))["e-0"]
    assert (other[-1].reuse, other[-1].reused) == (Reuse.MISS, 0), "another key's prefix was used"
    expected_turn = run(plain, sequences(plain, "c", longer, params))["c-0"]
    expected_first = run(plain, sequences(plain, "a", prompt, params))["a-0"]
    assert outcome(first) == outcome(again) == outcome(other) == outcome(expected_first)
    assert outcome(turn) == outcome(expected_turn)


@each_architecture
def test_a_parked_sequence_goes_on_as_if_nothing_had_happened(architecture: str) -> None:
    engine = load_engine(EngineConfig(str(CHECKPOINTS[architecture]), max_batch=1, max_step_tokens=16, prefix_cache=0))
    params = SamplingParams(max_tokens=8, temperature=1.0, seed=2, ignore_eos=True, logprobs=0)
    prompt = [token % engine.info.vocab_size for token in range(40)]
    expected = run(engine, sequences(engine, "w", prompt, params))["w-0"]
    read_before = engine.engine.tokens_read
    events: dict[str, list[TokenEvent]] = {}
    ended: list[str] = []
    engine.engine.add(sequences(engine, "slow", prompt, params, priority=1))
    for step in range(60):
        if step % 3 == 1 and step < 20:
            engine.engine.add(sequences(engine, f"urgent{step}", [step], SamplingParams(max_tokens=2, ignore_eos=True)))
        for event in engine.engine.step():
            events.setdefault(event.sequence_id, []).append(event)
            if event.finish_reason is not None:
                ended.append(event.sequence_id)
    assert ended.index("slow-0") >= 3, "nobody was served before"
    assert outcome(events["slow-0"]) == outcome(expected)
    assert engine.engine.scheduler.num_parked == 0
    urgent = len(ended) - 1
    read = engine.engine.tokens_read - read_before
    assert read == len(prompt) + 7 + 2 * urgent, "something was read twice"


@pytest.mark.parametrize("seed", range(3))
def test_private_snapshots_hold_no_tokens_and_go_on_all_the_same(seed: int) -> None:
    engine = loaded("GLAForCausalLM")
    prompt = torch.randint(0, engine.info.vocab_size, (20,), generator=torch.Generator().manual_seed(seed)).tolist()
    params = SamplingParams(max_tokens=10, temperature=1.0, seed=seed, ignore_eos=True, frequency_penalty=0.5)
    expected = outcome(run(engine, sequences(engine, "w", prompt, params))["w-0"])[0]
    private = Continuation(keep=Keep(private=True))
    tokens: list[int] = []
    given: list[int] = prompt
    start = private
    for part in (4, 3, 3):
        options = SamplingParams(max_tokens=part, temperature=1.0, seed=seed, ignore_eos=True, frequency_penalty=0.5)
        events = run(engine, sequences(engine, "p", given, options, states=start))["p-0"]
        tokens += outcome(events)[0]
        snapshot = last_snapshot(engine, events)
        assert snapshot.log.tokens is None
        assert snapshot.log.length == 20 + len(tokens)
        given, start = [], Continuation(start=snapshot, keep=Keep(private=True))
    assert tokens == expected
