"""An encoder region (JRT-RNN) in the engine: read at once, and states that are never taken for another prompt's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from ostinato.engine.config import EngineConfig
from ostinato.engine.continuation import Continuation
from ostinato.engine.errors import RequestError
from ostinato.engine.events import Reuse
from ostinato.engine.keeping import Keep
from ostinato.engine.loading import LoadedEngine, load_engine
from ostinato.engine.sampling_params import SamplingParams
from ostinato.engine.scheduler import Scheduler
from ostinato.models.checkpoint import open_checkpoint
from ostinato.models.registry import load_model
from tests.engine.test_scheduler import advance, read, schedule, sequence
from tests.engine.test_states import STORE, last_snapshot, outcome, run, sequences
from tests.models.goldens import PATHS
from tests.models.running import continue_greedily

LENGTH = 40  # longer than a state at a parting has to be
GREEDY = {"temperature": 0.0, "ignore_eos": True, "logprobs": 1}
MINE = Continuation(scope="me")
TEXT = [(7 * i + 3) % 200 for i in range(90)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden's weights with a longer region."""
    folder = tmp_path_factory.mktemp("models") / "jrt"
    shutil.copytree(PATHS["jrt"], folder, copy_function=shutil.copyfile)
    config = json.loads((folder / "config.json").read_text())
    config["enc_length"] = config["alt_mixer"]["enc_length"] = LENGTH
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def engine_of(folder: Path, cache: int = 0, max_step_tokens: int = 8) -> LoadedEngine:
    return load_engine(
        EngineConfig(
            str(folder), max_batch=4, max_step_tokens=max_step_tokens, prefix_cache=cache, dtype="float32", threads=1
        )
    )


def test_a_region_is_one_chunk_and_takes_the_budget_of_a_step() -> None:
    scheduler = Scheduler(3, 8, 8, encoder_length=12)
    scheduler.add([sequence("long", 22), sequence("short", 3), sequence("other", 2)])
    plans = []
    for _ in range(5):
        plan = schedule(scheduler)
        plans.append(read(plan))
        advance(plan)
    assert plans == [
        [("long", 12)],
        [("long", 8)],
        [("long", 2), ("short", 3)],
        [("long", 1), ("short", 1), ("other", 2)],
        [("long", 1), ("short", 1), ("other", 1)],
    ]


def test_a_sequence_is_parked_before_its_region_or_behind_it() -> None:
    scheduler = Scheduler(1, 4, 8, encoder_length=10)
    slow = sequence("slow", 17, priority=1)
    scheduler.add([slow])
    scheduler.admit()
    scheduler.add([sequence("urgent")])
    assert [victim.num_read for victim, _ in scheduler.admit().parked] == [0]
    (chunk,) = scheduler.plan().chunks
    scheduler.remove(chunk.sequence)
    assert read(schedule(scheduler)) == [("slow", 10)]


@pytest.mark.parametrize("count", [1, 9, LENGTH, 75])
def test_the_engine_gives_what_the_model_does(folder: Path, count: int) -> None:
    """One token is no plain step when it is a prompt; and a step's budget is smaller than the region."""
    expected, _ = continue_greedily(load_model(open_checkpoint(folder), dtype=torch.float32), TEXT[:count], 6)
    engine = engine_of(folder)
    prompts = {name: TEXT[start : start + count] for name, start in (("a", 0), ("b", 3), ("c", 5))}
    groups = [
        sequences(engine, name, prompt, SamplingParams(max_tokens=6, **GREEDY)) for name, prompt in prompts.items()
    ]
    assert outcome(run(engine, *groups)["a-0"])[0] == expected


def test_choices_of_a_short_prompt_read_it_once(folder: Path) -> None:
    engine = engine_of(folder)
    params = SamplingParams(max_tokens=4, temperature=1.0, seed=3, ignore_eos=True, logprobs=0)
    together = run(engine, sequences(engine, "t", TEXT[:9], params, n=3))
    assert engine.engine.tokens_read == 9 + 3 * 3
    for index in range(3):
        (alone,) = sequences(engine, "a", TEXT[:9], params)
        alone.index = index
        assert outcome(together[f"t-{index}"]) == outcome(run(engine, [alone])["a-0"])


def test_a_shorter_prompts_state_is_no_prefix_of_a_longer_one(folder: Path) -> None:
    """Neither its own nor its answer's; and it is said why."""
    cached, plain = engine_of(folder, 10**9), engine_of(folder)
    params = SamplingParams(max_tokens=6, **GREEDY)
    first = run(cached, sequences(cached, "a", TEXT[:20], params, states=MINE))["a-0"]
    assert (first[-1].reused, first[-1].reuse) == (0, Reuse.REGION)
    turn = [*TEXT[:20], *outcome(first)[0], *TEXT[50:75]]
    for prompt, why in ((TEXT[:20], Reuse.REGION), (turn[:30], Reuse.REGION), (turn, Reuse.MISS)):
        found = run(cached, sequences(cached, "b", prompt, params, states=MINE))["b-0"]
        assert (found[-1].reused, found[-1].reuse) == (0, why)
        assert outcome(found) == outcome(run(plain, sequences(plain, "b", prompt, params))["b-0"])


def test_prompts_that_part_inside_of_the_region_share_nothing(folder: Path) -> None:
    cached, plain = engine_of(folder, 10**9), engine_of(folder)
    params = SamplingParams(max_tokens=3, **GREEDY)
    wish = Continuation(scope="me", stops=(frozenset({30}),))
    for i in range(4):
        prompt = [*TEXT[:30], i, *TEXT[31:60]]
        found = run(cached, sequences(cached, "p", prompt, params, states=wish))["p-0"]
        assert found[-1].reused == 0, "a state inside of the region was kept"
        assert outcome(found) == outcome(run(plain, sequences(plain, "p", prompt, params))["p-0"])
    for i, expected in enumerate((0, 56, 56)):  # and behind it as ever: once seen, there is a state at the parting
        prompt = [*TEXT[:30], 3, *TEXT[31:56], 100 + i, *TEXT[:9]]
        found = run(cached, sequences(cached, "q", prompt, params, states=MINE))["q-0"]
        assert found[-1].reused == expected
        assert outcome(found) == outcome(run(plain, sequences(plain, "q", prompt, params))["q-0"])


def test_a_short_prompts_state_goes_on_as_decoding(folder: Path) -> None:
    """What follows it is no part of its region, however often it is stored; and the prefix cache never learns of it."""
    engine = engine_of(folder, 10**9)
    params = SamplingParams(max_tokens=5, **GREEDY)
    at_once = run(engine, sequences(engine, "w", TEXT[:70], params, states=Continuation(region=9)))["w-0"]
    start = last_snapshot(
        engine, run(engine, sequences(engine, "r", TEXT[:9], SamplingParams(max_tokens=0), states=STORE))["r-0"]
    )
    middle = Continuation(start=start, keep=Keep(), scope="me")
    start = last_snapshot(
        engine, run(engine, sequences(engine, "m", TEXT[9:50], SamplingParams(max_tokens=0), states=middle))["m-0"]
    )
    assert (start.region, start.log.length) == (9, 50)
    on = Continuation(start=start, scope="me")
    assert outcome(run(engine, sequences(engine, "c", TEXT[50:70], params, states=on))["c-0"]) == outcome(at_once)
    whole = run(engine, sequences(engine, "p", TEXT[:70], params, states=MINE))["p-0"]
    assert (whole[-1].reused, whole[-1].reuse) == (0, Reuse.MISS)
    assert outcome(whole) != outcome(at_once), "the two would not be told apart"


@pytest.mark.parametrize(("prompt", "checkpoint"), [(70, LENGTH - 1), (70, 1), (20, 19)])
def test_a_checkpoint_inside_of_the_region_is_refused(folder: Path, prompt: int, checkpoint: int) -> None:
    engine = engine_of(folder)
    inside = Continuation(keep=Keep(), checkpoints=frozenset({checkpoint, prompt}))
    with pytest.raises(
        RequestError, match=f"after {checkpoint} tokens: the first {min(prompt, LENGTH)} tokens"
    ) as refused:
        sequences(engine, "a", TEXT[:prompt], SamplingParams(), states=inside, encoder_length=LENGTH)
    assert refused.value.field == "checkpoints"


def test_a_checkpoint_at_the_end_of_the_region_is_kept(folder: Path) -> None:
    engine = engine_of(folder)
    params = SamplingParams(max_tokens=4, **GREEDY)
    marks = Continuation(keep=Keep(), checkpoints=frozenset({LENGTH, LENGTH + 1}))
    events = run(engine, sequences(engine, "a", TEXT[:60], params, states=marks, encoder_length=LENGTH))["a-0"]
    kept = [snapshot for event in events for snapshot in event.snapshots]
    assert [snapshot.log.length for snapshot in kept] == [LENGTH, LENGTH + 1, 64]
    for snapshot in kept[:2]:
        rest = sequences(engine, "b", TEXT[snapshot.log.length : 60], params, states=Continuation(start=snapshot))
        assert outcome(run(engine, rest)["b-0"]) == outcome(events)


def test_tokens_of_the_region_are_not_scored(folder: Path) -> None:
    """All of it has been seen when they would be predicted."""
    engine = engine_of(folder)
    for count in (9, 60):
        params = SamplingParams(max_tokens=1, prompt_logprobs=0)
        events = run(engine, sequences(engine, "a", TEXT[:count], params))["a-0"]
        scores = [score for event in events for score in event.prompt_logprobs]
        assert [score is None for score in scores] == [i < min(count, LENGTH) for i in range(count)]
        assert [score.token_id for score in scores if score is not None] == TEXT[LENGTH:count]
