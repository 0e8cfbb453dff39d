"""What the server measures, in Prometheus' text format. One registry per app."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from ostinato.engine.service import Service
    from ostinato.engine.types import TokenEvent

# Seconds. From one fast step on a GPU to a long prompt behind a long queue on a CPU.
FIRST_TOKEN_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
INTER_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5)
REQUEST_BUCKETS = (0.005, 0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class EngineCollector(Collector):
    """Reads the engine's own counts at the moment of the scrape."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def collect(self) -> Iterator[Metric]:
        stats = self.service.stats()
        yield GaugeMetricFamily("ostinato_slots", "Slots of the state pool.", stats.slots)
        yield GaugeMetricFamily("ostinato_slots_used", "Slots that hold a sequence's state.", stats.slots_used)
        yield GaugeMetricFamily("ostinato_running", "Sequences that have a slot.", stats.running)
        yield GaugeMetricFamily("ostinato_queue_depth", "Sequences that wait for a slot.", stats.waiting)
        yield GaugeMetricFamily("ostinato_queue_bound", "Sequences that may wait.", stats.max_queue)
        yield CounterMetricFamily(
            "ostinato_prompt_tokens", "Prompt tokens of accepted requests.", stats.prompt_tokens_total
        )
        yield CounterMetricFamily("ostinato_read_tokens", "Tokens that the model has read.", stats.read_tokens_total)
        yield CounterMetricFamily(
            "ostinato_reused_tokens", "Tokens that a kept state saved from being read.", stats.reused_tokens_total
        )
        yield GaugeMetricFamily("ostinato_parked", "Sequences that gave way to more urgent ones.", stats.parked)
        yield GaugeMetricFamily("ostinato_prefix_cache_bytes", "Bytes in the prefix cache.", stats.cache_bytes)
        yield GaugeMetricFamily("ostinato_prefix_cache_budget_bytes", "Bytes that it may have.", stats.cache_budget)
        yield GaugeMetricFamily("ostinato_prefix_cache_states", "States in the prefix cache.", stats.cache_states)
        yield CounterMetricFamily(
            "ostinato_prefix_cache_evictions", "States that left the prefix cache.", stats.cache_evictions_total
        )
        began = CounterMetricFamily("ostinato_sequences_begun", "Sequences, by where they began.", labels=["reuse"])
        for reuse, count in stats.reuse.items():
            began.add_metric([str(reuse)], count)
        yield began
        yield CounterMetricFamily("ostinato_generated_tokens", "Tokens generated.", stats.generated_tokens_total)
        yield CounterMetricFamily("ostinato_steps", "Engine steps.", stats.steps_total)
        yield CounterMetricFamily("ostinato_step_seconds", "Seconds spent in steps.", stats.step_seconds_total)
        ended = CounterMetricFamily("ostinato_sequences", "Sequences ended, by reason.", labels=["reason"])
        for reason, count in stats.finished.items():
            ended.add_metric([reason], count)
        yield ended


class Metrics:
    """The registry of one app, and the moments that are recorded in it."""

    def __init__(self, service: Service) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(EngineCollector(service))
        self.first_token = Histogram(
            "ostinato_time_to_first_token_seconds",
            "From the arrival of a request to its first token.",
            buckets=FIRST_TOKEN_BUCKETS,
            registry=self.registry,
        )
        self.inter_token = Histogram(
            "ostinato_inter_token_seconds",
            "Between two tokens of one sequence.",
            buckets=INTER_TOKEN_BUCKETS,
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "ostinato_request_seconds",
            "From the arrival of a request to the end of its answer.",
            labelnames=["route"],
            buckets=REQUEST_BUCKETS,
            registry=self.registry,
        )
        self.requests = Counter(
            "ostinato_requests",
            "Requests, by outcome: ok, invalid, unauthorized, limited, queue_full, unavailable, error, disconnected.",
            labelnames=["route", "outcome"],
            registry=self.registry,
        )

    def request_ended(self, route: str, outcome: str, seconds: float) -> None:
        self.requests.labels(route, outcome).inc()
        self.request_seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class TokenClock:
    """Times the tokens of one request. `started`: its arrival, by `time.perf_counter`."""

    def __init__(self, metrics: Metrics, started: float) -> None:
        self.metrics = metrics
        self.started = started
        self.last: dict[int, float] = {}

    def tick(self, event: TokenEvent) -> None:
        if not event.token_ids:
            return
        now = time.perf_counter()
        if event.index in self.last:
            self.metrics.inter_token.observe(now - self.last[event.index])
        elif not self.last:
            self.metrics.first_token.observe(now - self.started)
        self.last[event.index] = now
