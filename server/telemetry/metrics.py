"""What the server measures, in Prometheus' text format. One registry per app."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from ostinato.server.telemetry.collector import EngineCollector

if TYPE_CHECKING:
    from ostinato.engine.events import TokenEvent
    from ostinato.engine.service import Service
    from ostinato.engine.states import States

# Seconds. From one fast step on a GPU to a long prompt behind a long queue on a CPU.
FIRST_TOKEN_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
INTER_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5)
RESTORE_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
REQUEST_BUCKETS = (0.005, 0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The registry of one app, and the moments that are recorded in it."""

    def __init__(self, service: Service, states: States | None = None) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(EngineCollector(service, states))
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
        self.restore = Histogram(
            "ostinato_restore_seconds",
            "Finding and reading the state that a request goes on from.",
            buckets=RESTORE_BUCKETS,
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
