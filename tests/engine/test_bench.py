"""The offline bench: what it counts, by hand and by what the engine was made to do. Nothing here holds a time."""

import dataclasses
from pathlib import Path

import pytest
import torch

from ostinato.engine import bench
from ostinato.engine.bench import Load, OfflineBench, Step, Timing, bench_offline, least_seconds, no_progress, work_of
from ostinato.engine.config import EngineConfig
from ostinato.engine.errors import StepError
from ostinato.engine.info import ModelInfo
from ostinato.engine.loading import LoadedEngine, load_engine
from ostinato.engine.types import StepPlan
from ostinato.kernels.roofline import Rates, Work
from tests.fakes import ScriptedRunner, scripted_engine, scripted_service, scripted_snapshots

GLA = Path(__file__).parents[1] / "goldens" / "gla"
CPU = torch.device("cpu")
RATES = Rates(read=1000.0, copy=100.0, product=10_000.0)


def info(**changes: object) -> ModelInfo:
    sizes = {"matmul_params": 100, "head_params": 40, "bytes_per_state": 10, "dtype": "bfloat16"}
    return dataclasses.replace(scripted_service().info, **{**sizes, **changes})


def scripted(runner: ScriptedRunner, *, slots: int = 4, max_step_tokens: int = 16) -> LoadedEngine:
    engine = scripted_engine(runner, slots=slots, max_step_tokens=max_step_tokens, max_queue=0)
    return LoadedEngine(engine, info(), None, scripted_snapshots(), {})


class Plans:
    """Keeps the lengths of the chunks of every step."""

    def __init__(self) -> None:
        self.lengths: list[list[int]] = []

    def __call__(self, plan: StepPlan) -> None:
        self.lengths.append([chunk.length for chunk in plan.chunks])


def test_the_work_of_a_step() -> None:
    decode = work_of(Step(tokens=3, sequences=3, logits=3), info())
    assert decode == Work(weight_bytes=(100 + 40) * 2, flop=2 * 3 * (100 + 40), state_bytes=2 * 3 * 10)
    prefill = work_of(Step(tokens=50, sequences=2, logits=0), info(dtype="float32"))
    assert prefill == Work(weight_bytes=100 * 4, flop=2 * 50 * 100, state_bytes=2 * 2 * 10)
    last = work_of(Step(tokens=50, sequences=2, logits=1), info(dtype="float32"))
    assert last == Work(weight_bytes=(100 + 40) * 4, flop=2 * (50 * 100 + 40), state_bytes=2 * 2 * 10)


def test_the_least_time_of_steps_is_that_of_each_together() -> None:
    bound_by_reading = Step(tokens=1, sequences=1, logits=1)  # max(280 / 1000, 280 / 10_000) + 20 / 100
    bound_by_multiplying = Step(tokens=100, sequences=1, logits=0)  # max(200 / 1000, 20_000 / 10_000) + 20 / 100
    assert least_seconds([bound_by_reading, bound_by_multiplying], info(), RATES) == pytest.approx(0.48 + 2.2)


def test_a_row() -> None:
    decode = Timing((Step(2, 2, 2),) * 5, seconds=10.0)  # each max(280 / 1000, 560 / 10_000) + 40 / 100 = 0.68
    prefill = Timing((Step(16, 2, 0), Step(4, 1, 0)), seconds=2.0)  # (0.32 + 0.4) + (0.2 + 0.2)
    times = bench.BatchTimes(2, prefill, decode)
    row = bench.row_of(times, Load((2,), prompt_tokens=10, new_tokens=5), info(), RATES, "cpu")
    assert (row.batch, row.prefill_tokens_per_second, row.decode_tokens_per_second) == (2, 10.0, 1.0)
    assert row.prefill_roofline_fraction == pytest.approx(1.12 / 2.0)
    assert row.decode_roofline_fraction == pytest.approx(3.4 / 10.0)
    assert (row.weight_bytes_per_decode_step, row.state_bytes_per_decode_step) == (280, 40)


def test_the_median_repeat_counts() -> None:
    steps = (Step(1, 1, 1),)
    assert Timing.median([Timing(steps, seconds) for seconds in (3.0, 1.0, 8.0)]) == Timing(steps, 3.0)


def test_prefill_reads_all_prompts_in_full_steps_and_generates_nothing() -> None:
    plans = Plans()
    runner = ScriptedRunner(before_step=plans)
    timing = OfflineBench(scripted(runner), CPU).read_prompts([(1,) * 10] * 4)
    assert plans.lengths == [[10, 6], [4, 10, 2], [8]]
    assert timing.steps == (Step(16, 2, 0), Step(16, 3, 0), Step(8, 1, 0))
    assert not runner.misuse


def test_decode_times_only_steps_of_the_whole_batch() -> None:
    """While the last prompt is being read, the sequences before it decode already: that is not timed."""
    plans = Plans()
    runner = ScriptedRunner(before_step=plans)
    loaded = scripted(runner)
    timing = OfflineBench(loaded, CPU).generate([(1,) * 10] * 4, new_tokens=4)
    assert plans.lengths[:3] == [[10, 6], [1, 4, 10, 1], [1, 1, 1, 9]]
    assert plans.lengths[3:] == [[1, 1, 1, 1]] * 4
    assert timing.steps == (Step(4, 4, 4),) * 4
    assert not loaded.engine.has_work
    assert not runner.states, "every slot was given back"
    assert not runner.misuse


def test_each_batch_size_is_warmed_up_and_repeated() -> None:
    runner, reports = ScriptedRunner(), []
    load = Load((1, 4), prompt_tokens=3, new_tokens=2, repeats=2)
    measuring = OfflineBench(scripted(runner), CPU)
    results = [measuring.measure(batch, load, lambda *report: reports.append(report)) for batch in load.batches]
    assert [each.batch for each in results] == [1, 4]
    assert [each.decode.steps for each in results] == [(Step(1, 1, 1),) * 2, (Step(4, 4, 4),) * 2]
    assert [each.prefill.steps for each in results] == [(Step(3, 1, 0),), (Step(12, 4, 0),)]
    assert runner.steps == 2 * 3 * (1 + 1 + 2)
    assert reports == [(f"batch {batch}", done, 3) for batch in (1, 4) for done in range(4)]


def test_a_step_that_fails_is_an_error() -> None:
    def fail(plan: StepPlan) -> None:
        raise ArithmeticError("no luck")

    measuring = OfflineBench(scripted(ScriptedRunner(before_step=fail)), CPU)
    with pytest.raises(StepError, match="bench-0 failed: no luck"):
        measuring.measure(2, Load((2,), prompt_tokens=3, new_tokens=2), no_progress)


@pytest.mark.parametrize("name", ["prompt_tokens", "new_tokens", "repeats"])
def test_a_load_has_one_of_everything(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0"):
        Load(**{"batches": (1,), "prompt_tokens": 1, "new_tokens": 1, "repeats": 1, name: 0})
    with pytest.raises(ValueError, match="batches"):
        Load((), 1, 1)


def test_a_real_model_end_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rates around each batch size count, with their mean."""
    rates = iter([Rates(1e9, 3e9, 2e9), Rates(3e9, 1e9, 4e9), Rates(5e9, 3e9, 2e9)])
    monkeypatch.setattr(bench, "measure_rates", lambda device, dtype: next(rates))
    loaded = load_engine(EngineConfig(str(GLA), dtype="float32", max_batch=3, max_step_tokens=16))
    rows = bench_offline(loaded, Load((3, 1), prompt_tokens=20, new_tokens=3, repeats=1), "cpu")
    assert [row.batch for row in rows] == [3, 1]
    for row, read in zip(rows, (2e9, 4e9), strict=True):
        assert (row.read_bytes_per_second, row.copy_bytes_per_second, row.product_flop_per_second) == (read, 2e9, 3e9)
        assert row.decode_tokens_per_second == pytest.approx(row.batch * 3 / row.decode_seconds)
        assert row.prefill_tokens_per_second == pytest.approx(row.batch * 20 / row.prefill_seconds)
        assert row.decode_roofline_fraction > 0
        assert row.prefill_roofline_fraction > 0
        assert row.weight_bytes_per_decode_step == 4 * (loaded.info.matmul_params + loaded.info.head_params)
        assert row.state_bytes_per_decode_step == 2 * row.batch * loaded.info.bytes_per_state
