"""Mitigations in the engine: the same bits for any split and any company, and states that know how they were made."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch

from ostinato.engine.admission import make_sequences
from ostinato.engine.config import EngineConfig
from ostinato.engine.continuation import FRESH, Continuation, with_defaults
from ostinato.engine.errors import OtherWindowError, RequestError, SnapshotFormatError
from ostinato.engine.events import Reuse, TokenEvent
from ostinato.engine.guard import REPORTING
from ostinato.engine.keeping import Keep
from ostinato.engine.loading import LoadedEngine, load_engine
from ostinato.engine.mitigation import UNTOUCHED, Mitigation
from ostinato.engine.sampling_params import SamplingParams
from ostinato.engine.snapshots import Snapshot
from ostinato.models.mitigations import REMEDIES
from tests.models.test_contract import CHECKPOINTS

PARAMS = SamplingParams(max_tokens=21, temperature=1.0, seed=7, logprobs=3, ignore_eos=True)
WHOLE = Mitigation(forget=0.99, remember=0.8, clip_norm=0.05, clip_every=16, window=24)
NORMED = replace(WHOLE, remember=1.0)
UNSHARED = Mitigation(remember=0.8, clip_norm=0.05, clip_every=16)
CLIP = Mitigation(clip_norm=0.05, clip_every=16)
ARCHITECTURES = {
    "DeltaNetForCausalLM": CLIP,
    "FalconMambaForCausalLM": UNSHARED,
    "GLAForCausalLM": NORMED,
    "GatedDeltaNetForCausalLM": CLIP,
    "HGRN2ForCausalLM": NORMED,
    "KDAForCausalLM": CLIP,
    "Mamba2ForCausalLM": WHOLE,
    "MambaForCausalLM": UNSHARED,
    "RWKV6ForCausalLM": WHOLE,
    "RWKV7ForCausalLM": CLIP,
    "RetNetForCausalLM": NORMED,
    "Rwkv5ForCausalLM": WHOLE,
}
each_architecture = pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))


@functools.cache
def loaded(architecture: str, budget: int = 37, cache: int = 0) -> LoadedEngine:
    return load_engine(
        EngineConfig(
            str(CHECKPOINTS[architecture]),
            max_batch=6,
            max_step_tokens=budget,
            prefix_cache=cache,
            dtype="float32",
            window_memory=ARCHITECTURES[architecture].window is not None,
        )
    )


def prompt_of(engine: LoadedEngine, length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, engine.info.vocab_size, (length,), generator=generator).tolist()


def run(engine: LoadedEngine, *requests: tuple[list[int], Continuation]) -> list[list[TokenEvent]]:
    """Runs the requests together. Returns the events of each."""
    events: dict[str, list[TokenEvent]] = {}
    for number, (prompt, states) in enumerate(requests):
        states = with_defaults(states, engine.info, REPORTING)
        made = make_sequences(
            f"r{number}", [prompt], PARAMS, vocab_size=engine.info.vocab_size, tokenizer=None, states=states
        )
        events[made[0].id] = []
        engine.engine.add(made)
    while engine.engine.has_work:
        for event in engine.engine.step():
            assert event.error is None, event
            events[event.sequence_id].append(event)
    return list(events.values())


def outcome(events: list[TokenEvent]) -> tuple[list[int], list[object]]:
    return [t for event in events for t in event.token_ids], [entry for event in events for entry in event.logprobs]


def snapshot_of(engine: LoadedEngine, events: list[TokenEvent]) -> Snapshot:
    """The last one, as it comes back from a file."""
    return engine.snapshots.decode(engine.snapshots.encode(events[-1].snapshots[-1]))


def test_every_claimed_family_is_tested() -> None:
    tested = {loaded(architecture).info.family: mitigation for architecture, mitigation in ARCHITECTURES.items()}
    claimed = {family: sorted(remedies) for family, remedies in REMEDIES.items()}
    assert {family: sorted(each.asked.keys() - {"clip_every"}) for family, each in tested.items()} == claimed


@each_architecture
def test_the_same_bits_in_any_company_and_any_chunks(architecture: str) -> None:
    mitigation = ARCHITECTURES[architecture]
    engine = loaded(architecture)
    prompt = prompt_of(engine, 61, 1)
    treated, untouched = Continuation(mitigation=mitigation), FRESH
    (alone,), (plain,) = run(engine, (prompt, treated)), run(engine, (prompt, untouched))
    assert outcome(alone) != outcome(plain)  # it does something
    others = [(prompt_of(engine, length, length), replace(FRESH, mitigation=CLIP)) for length in (5, 33)]
    together = run(loaded(architecture, 17), (prompt, untouched), *others, (prompt, treated))
    assert outcome(together[-1]) == outcome(alone)
    assert outcome(together[0]) == outcome(plain)


@each_architecture
def test_a_stored_state_goes_on_as_if_it_had_never_stopped(architecture: str) -> None:
    mitigation, engine = ARCHITECTURES[architecture], loaded(architecture)
    states = Continuation(mitigation=mitigation, keep=Keep())
    first, second = prompt_of(engine, 40, 2), prompt_of(engine, 30, 3)
    (stored,) = run(engine, (first, states))
    made = snapshot_of(engine, stored)
    assert made.mitigation == mitigation
    (resumed,) = run(engine, (second, Continuation(start=made)))
    (unsplit,) = run(engine, ([*(made.log.tokens or ()), *second], Continuation(mitigation=mitigation)))
    assert outcome(resumed) == outcome(unsplit)


def test_a_state_goes_on_with_its_own_mitigation_only() -> None:
    engine = loaded("GLAForCausalLM")
    (stored,) = run(engine, (prompt_of(engine, 20, 2), Continuation(mitigation=Mitigation(forget=0.9), keep=Keep())))
    made = snapshot_of(engine, stored)
    for other in (UNTOUCHED, Mitigation(forget=0.8)):
        with pytest.raises(RequestError, match=r"made with forget=0\.9, and cannot go on with") as raised:
            run(engine, ([1], Continuation(start=made, mitigation=other)))
        assert raised.value.field == "state_mitigation"
    run(engine, ([1], Continuation(start=made, mitigation=Mitigation(forget=0.9))))


def test_the_servers_mitigation_is_for_fresh_requests_that_name_none() -> None:
    engine = loaded("GLAForCausalLM")
    info = replace(engine.info, mitigation=Mitigation(forget=0.9))
    assert with_defaults(FRESH, info, REPORTING).mitigation == Mitigation(forget=0.9)
    assert with_defaults(Continuation(mitigation=UNTOUCHED), info, REPORTING).mitigation == UNTOUCHED
    (stored,) = run(engine, (prompt_of(engine, 20, 2), Continuation(keep=Keep())))
    gone_on = with_defaults(Continuation(start=snapshot_of(engine, stored)), info, REPORTING)
    assert gone_on.effective_mitigation == UNTOUCHED


def test_the_prefix_cache_keeps_them_apart() -> None:
    engine = loaded("GLAForCausalLM", cache=2**24)
    prompt = prompt_of(engine, 40, 5)
    seen = []
    for mitigation in (UNTOUCHED, NORMED, Mitigation(forget=0.99), NORMED, UNTOUCHED):
        (events,) = run(engine, (prompt, Continuation(mitigation=mitigation, scope="me")))
        seen.append((events[-1].reuse, events[-1].reused))
    assert seen == [(Reuse.MISS, 0)] * 3 + [(Reuse.HIT, 40)] * 2


def test_an_untouched_snapshot_is_written_as_before() -> None:
    engine = loaded("GLAForCausalLM")
    (stored,) = run(engine, (prompt_of(engine, 20, 2), Continuation(keep=Keep())))
    data = engine.snapshots.encode(stored[-1].snapshots[-1])
    assert b"mitigation" not in data
    assert b"previous_recurrent" not in data


def test_a_window_needs_memory_here_and_there() -> None:
    with_memory = loaded("GLAForCausalLM")
    without = load_engine(EngineConfig(str(CHECKPOINTS["GLAForCausalLM"]), max_batch=2, dtype="float32"))
    assert with_memory.info.bytes_per_state > 2 * without.info.bytes_per_state
    mitigation = Mitigation(window=32)
    with pytest.raises(RequestError, match="--state-window-memory"):
        run(without, ([1, 2], Continuation(mitigation=mitigation)))
    (stored,) = run(with_memory, (prompt_of(with_memory, 40, 2), Continuation(mitigation=mitigation, keep=Keep())))
    data = with_memory.snapshots.encode(stored[-1].snapshots[-1])
    with pytest.raises(OtherWindowError, match="a window of 32 tokens"):
        without.snapshots.decode(data)


def test_a_file_with_a_mitigation_that_there_is_not_is_refused() -> None:
    engine = loaded("GLAForCausalLM")
    states = Continuation(mitigation=Mitigation(forget=0.5), keep=Keep())
    (stored,) = run(engine, (prompt_of(engine, 20, 2), states))
    data = engine.snapshots.encode(stored[-1].snapshots[-1])
    with pytest.raises(SnapshotFormatError, match="forget must be in"):
        engine.snapshots.decode(data.replace(rb"\"forget\":0.5", rb"\"forget\":1.5"))


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"forget": 0.0}, "forget must be in"),
        ({"forget": 1.1}, "forget must be in"),
        ({"remember": float("nan")}, "remember must be in"),
        ({"clip_norm": 0.0}, "clip_norm must be above 0"),
        ({"clip_norm": float("inf")}, "clip_norm must be above 0"),
        ({"clip_every": 64}, "clip_every needs a clip_norm"),
        ({"clip_norm": 1.0, "clip_every": 15}, "clip_every must be at least 16"),
        ({"window": 15}, "window must be at least 16"),
    ],
)
def test_values_out_of_range_are_refused(given: dict[str, float], problem: str) -> None:
    with pytest.raises(RequestError, match=problem):
        Mitigation(**given)  # type: ignore[arg-type]  # that is the point


@pytest.mark.parametrize("architecture", sorted(name for name in CHECKPOINTS if "+" not in name))
def test_what_does_not_apply_to_a_family_is_refused_by_its_name(architecture: str) -> None:
    info = replace(loaded("GLAForCausalLM").info, family=family_of(architecture), window_memory=True)
    applies = REMEDIES.get(info.family, frozenset())
    for name, value in {"forget": 0.9, "remember": 0.9, "clip_norm": 1.0, "window": 64}.items():
        mitigation = Mitigation(**{name: value})  # type: ignore[arg-type]  # each of its own type
        if name in applies:
            mitigation.check(info)
            continue
        with pytest.raises(RequestError, match=f"{name} does not apply to {info.family}"):
            mitigation.check(info)


@functools.cache
def family_of(architecture: str) -> str:
    return load_engine(EngineConfig(str(CHECKPOINTS[architecture]), max_batch=1)).info.family
