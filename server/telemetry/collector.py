"""What the engine and the state store count by themselves, read at the moment of a scrape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from ostinato.engine.events import Reuse
from ostinato.engine.guard import GuardStats, Reaction
from ostinato.engine.state_counts import StateCounts

if TYPE_CHECKING:
    from ostinato.engine.info import EngineStats
    from ostinato.engine.service import Service
    from ostinato.engine.states import States
    from ostinato.engine.step_meter import Distribution, StepMeter
    from ostinato.engine.store.state_store import TierUsage


class EngineCollector(Collector):
    """states: None where none are kept."""

    def __init__(self, service: Service, states: States | None) -> None:
        self.service = service
        self.states = states

    def collect(self) -> Iterator[Metric]:
        stats = self.service.stats()
        yield from _capacity(stats)
        yield from _tokens(stats)
        yield from _prefix_cache(stats)
        yield from _steps(stats.meter)
        yield from _guard(stats.guard)
        yield _kernels(self.service)
        yield from _states(StateCounts() if self.states is None else self.states.counts)
        yield from self._state_bytes(stats)

    def _state_bytes(self, stats: EngineStats) -> Iterator[Metric]:
        each = self.service.info.bytes_per_state
        tiers: dict[str, tuple[float, float | None]] = {
            "pool": (stats.slots_used * each, stats.slots * each),
            "prefix_cache": (stats.cache_bytes, stats.cache_budget),
        }
        if self.states is not None:
            tiers["memory"] = (self.states.memory_bytes, self.states.memory_budget)
            usage: list[TierUsage | None] = [*self.states.usage]
            *caches, last = usage or [None]
            tiers |= {f"cache_{i}": (tier.bytes, tier.budget_bytes) for i, tier in enumerate(caches, 1) if tier}
            if last is not None:
                tiers["store"] = (last.bytes, last.budget_bytes)
        used = GaugeMetricFamily("ostinato_state_bytes", "Bytes of states, by where they are.", labels=["tier"])
        bound = GaugeMetricFamily("ostinato_state_budget_bytes", "Bytes that may be there.", labels=["tier"])
        for name, (num_bytes, budget) in tiers.items():
            used.add_metric([name], num_bytes)
            if budget is not None:
                bound.add_metric([name], budget)
        yield used
        yield bound


def _capacity(stats: EngineStats) -> Iterator[Metric]:
    yield GaugeMetricFamily("ostinato_slots", "Slots of the state pool.", stats.slots)
    yield GaugeMetricFamily("ostinato_slots_used", "Slots that hold a sequence's state.", stats.slots_used)
    yield GaugeMetricFamily("ostinato_running", "Sequences that have a slot.", stats.running)
    yield GaugeMetricFamily("ostinato_parked", "Sequences that gave way to more urgent ones.", stats.parked)
    yield GaugeMetricFamily("ostinato_queue_depth", "Sequences that wait for a slot.", stats.waiting)
    yield GaugeMetricFamily("ostinato_queue_bound", "Sequences that may wait.", stats.max_queue)


def _tokens(stats: EngineStats) -> Iterator[Metric]:
    yield CounterMetricFamily(
        "ostinato_prompt_tokens", "Prompt tokens of accepted requests.", stats.prompt_tokens_total
    )
    yield CounterMetricFamily("ostinato_read_tokens", "Tokens that the model has read.", stats.read_tokens_total)
    yield CounterMetricFamily(
        "ostinato_reused_tokens", "Tokens that a kept state saved from being read.", stats.reused_tokens_total
    )
    yield CounterMetricFamily("ostinato_generated_tokens", "Tokens generated.", stats.generated_tokens_total)
    yield _labelled("ostinato_sequences_begun", "Sequences, by where they began.", "reuse", stats.reuse)
    yield _labelled("ostinato_sequences", "Sequences ended, by reason.", "reason", stats.finished)


def _prefix_cache(stats: EngineStats) -> Iterator[Metric]:
    yield GaugeMetricFamily("ostinato_prefix_cache_bytes", "Bytes in the prefix cache.", stats.cache_bytes)
    yield GaugeMetricFamily("ostinato_prefix_cache_budget_bytes", "Bytes that it may have.", stats.cache_budget)
    yield GaugeMetricFamily("ostinato_prefix_cache_states", "States in the prefix cache.", stats.cache_states)
    yield CounterMetricFamily(
        "ostinato_prefix_cache_hits", "Sequences that began from the prefix cache.", stats.reuse.get(Reuse.HIT, 0)
    )
    yield CounterMetricFamily(
        "ostinato_prefix_cache_evictions", "States that left the prefix cache.", stats.cache_evictions_total
    )


def _steps(meter: StepMeter) -> Iterator[Metric]:
    yield CounterMetricFamily("ostinato_steps", "Engine steps.", meter.num_steps)
    yield CounterMetricFamily("ostinato_step_seconds", "Seconds spent in steps.", meter.num_seconds)
    yield CounterMetricFamily("ostinato_failed_steps", "Steps that raised an exception.", meter.failed)
    yield _labelled(
        "ostinato_step_part_seconds", "Seconds spent in steps, by part of the step.", "part", dict(meter.parts)
    )
    yield _labelled(
        "ostinato_not_finite", "Sequences ended by NaN or infinity, by where it was.", "where", meter.not_finite
    )
    duration = HistogramMetricFamily(
        "ostinato_step_duration_seconds", "Time of a step, by what its sequences did.", labels=["phase"]
    )
    for phase, seconds in meter.seconds.items():
        duration.add_metric([phase], seconds.buckets(), seconds.total)
    yield duration
    yield _histogram("ostinato_batch_size", "Sequences in a step.", meter.batch)
    yield _histogram("ostinato_step_tokens", "Tokens read in a step.", meter.tokens)
    yield _histogram("ostinato_queue_wait_seconds", "From a sequence's arrival to its first slot.", meter.wait)


def _guard(stats: GuardStats) -> Iterator[Metric]:
    yield GaugeMetricFamily("ostinato_state_norm", "Largest norm of a head's state at the last look.", stats.norm)
    yield GaugeMetricFamily("ostinato_state_norm_mean", "Mean norm of a head's state there.", stats.mean_norm)
    yield CounterMetricFamily("ostinato_state_looks", "Looks at the norms of one state.", stats.looks)
    yield CounterMetricFamily(
        "ostinato_state_not_finite", "Looks that found numbers that are not finite.", stats.not_finite
    )
    yield _labelled(
        "ostinato_state_exceeded",
        "Sequences whose state was found wanting, by reaction.",
        "reaction",
        {str(reaction): stats.exceeded[reaction] for reaction in Reaction},
    )


def _kernels(service: Service) -> Metric:
    info = service.info
    facts = {"backend": info.kernels, "device": info.device, "dtype": info.dtype, "family": info.family}
    return InfoMetricFamily("ostinato_kernels", "What computes the steps.", facts)


def _states(counts: StateCounts) -> Iterator[Metric]:
    yield CounterMetricFamily("ostinato_states_stored", "States put into the store.", counts.stored)
    yield _labelled(
        "ostinato_states_restored", "States that requests went on from, by where they lay.", "source", counts.restored
    )
    yield _labelled(
        "ostinato_states_refused", "States neither stored nor restored, by reason.", "reason", counts.refused
    )


def _labelled(name: str, text: str, label: str, values: Mapping[str, float] | Mapping[Reuse, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in list(values.items()):
        family.add_metric([str(value)], count)
    return family


def _histogram(name: str, text: str, values: Distribution) -> Metric:
    return HistogramMetricFamily(name, text, buckets=values.buckets(), sum_value=values.total)
