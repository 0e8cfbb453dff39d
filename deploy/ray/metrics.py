"""The metrics of all replicas at once, each series with a label that says whose it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

LABEL = "replica"


class _Merged(Collector):
    def __init__(self, texts: Mapping[str, str]) -> None:
        self.texts = texts

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for replica, text in self.texts.items():
            for one in text_string_to_metric_families(text):
                family = families.setdefault(one.name, Metric(one.name, one.documentation, one.type))
                for sample in one.samples:
                    family.add_sample(sample.name, {**sample.labels, LABEL: replica}, sample.value)
        return families.values()


def merged(texts: Mapping[str, str]) -> bytes:
    """One text in Prometheus' format from one of each replica, by its name."""
    registry = CollectorRegistry()
    registry.register(_Merged(texts))
    return generate_latest(registry)
