"""What steps cost: counted as Prometheus' own client counts it."""

from __future__ import annotations

import random

import pytest
from prometheus_client import CollectorRegistry, Histogram

from ostinato.engine.sampling_params import SamplingParams
from ostinato.engine.step_meter import BATCH_BOUNDS, STEP_BOUNDS, Distribution, StepMeter
from ostinato.engine.types import Sequence, StepPlan
from tests.fakes import ScriptedRunner, scripted_engine


@pytest.mark.parametrize("bounds", [STEP_BOUNDS, BATCH_BOUNDS])
@pytest.mark.parametrize("seed", range(3))
def test_a_distribution_is_a_histogram(bounds: tuple[float, ...], seed: int) -> None:
    draw = random.Random(seed)
    values = [*(draw.choice(bounds) for _ in range(50)), *(draw.expovariate(1 / bounds[5]) for _ in range(200)), 10**6]
    own, other = Distribution(bounds), Histogram("h", "h", buckets=bounds, registry=(registry := CollectorRegistry()))
    for value in values:
        own.observe(value)
        other.observe(value)
    (family,) = registry.collect()
    found = {sample.labels["le"]: sample.value for sample in family.samples if sample.name == "h_bucket"}
    assert dict(own.buckets()) == found, f"seed {seed}"
    assert own.count == len(values)
    assert own.total == pytest.approx(sum(values))


def test_steps_are_counted_by_what_they_do() -> None:
    engine = scripted_engine(ScriptedRunner(), slots=4, max_step_tokens=8)
    params = SamplingParams(max_tokens=3, temperature=0.0)
    engine.add([Sequence("a", (1, 2), params, 0)])
    engine.step()
    engine.step()
    engine.add([Sequence("b", (3,) * 20, params, 0)])
    while engine.has_work:
        engine.step()
    phases = {phase: seconds.count for phase, seconds in engine.meter.seconds.items()}
    assert phases == {"prefill": 3, "decode": 3, "mixed": 1}
    assert engine.meter.tokens.total == engine.tokens_read == 2 + 2 + 20 + 2
    assert engine.meter.batch.count == engine.meter.num_steps == 7
    assert engine.meter.wait.count == 2
    assert sum(engine.meter.parts.values()) == pytest.approx(engine.meter.num_seconds, rel=0.01)
    assert engine.meter.age == 0.0


def test_a_step_without_sequences_is_none() -> None:
    meter = StepMeter()
    meter.begin()
    meter.planned(StepPlan(()))
    assert meter.age >= 0.0
    meter.end()
    assert meter.num_steps == meter.batch.count == 0


def test_a_sequence_waits_once() -> None:
    meter, sequence = StepMeter(), Sequence("a", (1,), SamplingParams(), 0)
    meter.begun(sequence)
    waited = sequence.waited
    meter.begun(sequence)
    assert sequence.waited == waited
    assert meter.wait.count == 1


def test_warm_up_does_not_count() -> None:
    engine = scripted_engine(ScriptedRunner(), max_step_tokens=128)
    engine.warm_up()
    assert engine.meter.num_steps == engine.meter.wait.count == 0
