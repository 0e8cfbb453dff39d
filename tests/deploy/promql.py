"""What the expressions of deploy/ name, and what a server's /metrics has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.files import DEPLOY, read_yaml, require

if TYPE_CHECKING:
    import promql_parser

# Prometheus makes these itself, for each target.
TARGET_LABELS = {"instance", "job", "namespace", "pod"}
OWN_SERIES = {"up"}
GRAFANA = {"$__rate_interval": "5m", "$instance": ".*"}
ADAPTER = {"<<.Series>>": "ostinato_queue_depth", "<<.LabelMatchers>>": 'pod="a"', "<<.GroupBy>>": "pod"}


@dataclass
class Series:
    """labels: the values of each label that were seen."""

    help: str
    labels: dict[str, set[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Matcher:
    metric: str
    label: str
    value: str


@dataclass
class Named:
    """What one expression names. grouped: the labels in its `by` and `on`."""

    metrics: set[str] = field(default_factory=set)
    matchers: set[Matcher] = field(default_factory=set)
    grouped: set[str] = field(default_factory=set)


def scraped(text: str) -> dict[str, Series]:
    """The series of a scrape by the names that an expression calls them."""
    found: dict[str, Series] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            series = found.setdefault(sample.name, Series(family.documentation))
            for label, value in sample.labels.items():
                series.labels.setdefault(label, set()).add(value)
    return found


def _filled(expression: str, values: dict[str, str]) -> str:
    for name, value in values.items():
        expression = expression.replace(name, value)
    return expression


def panels() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Title and targets of every panel that shows something."""
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "ostinato.json").read_text())
    for panel in dashboard["panels"]:
        if panel["type"] != "row":
            yield panel["title"], panel["targets"]


def variables() -> Iterator[tuple[str, str]]:
    """Series and label of the dashboard's variables that ask Prometheus."""
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "ostinato.json").read_text())
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            match = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
            assert match is not None, variable
            yield match[1], match[2]


def alerts() -> list[dict[str, Any]]:
    groups = read_yaml(DEPLOY / "prometheus" / "alerts.yml")["groups"]
    return [rule for group in groups for rule in group["rules"]]


def adapter_rules() -> list[dict[str, Any]]:
    rules: list[dict[str, Any]] = read_yaml(DEPLOY / "prometheus" / "adapter.yaml")["rules"]["custom"]
    return rules


def expressions() -> dict[str, str]:
    """Every expression of deploy/, ready to be parsed, by where it stands."""
    found = {}
    for title, targets in panels():
        for target in targets:
            found[f"panel {title} {target['refId']}"] = _filled(target["expr"], GRAFANA)
    for rule in alerts():
        found[f"alert {rule['alert']}"] = rule["expr"]
    for rule in adapter_rules():
        found[f"adapter {rule['name']['as']}"] = rule["seriesQuery"]
        found[f"adapter {rule['name']['as']} query"] = _filled(rule["metricsQuery"], ADAPTER)
    return found


def names_in(expression: str) -> Named:
    """Raises ValueError: it is no PromQL."""
    require("promql_parser", "promql-parser")
    import promql_parser

    named = Named()

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            named.metrics.add(str(node.name))
            named.matchers |= {Matcher(str(node.name), m.name, m.value) for m in node.matchers.matchers}
        modifier = getattr(node, "modifier", None)
        if isinstance(node, promql_parser.AggregateExpr) and modifier is not None:
            named.grouped |= set(modifier.labels)
        if isinstance(node, promql_parser.BinaryExpr) and modifier is not None and modifier.matching is not None:
            named.grouped |= set(modifier.matching.labels)

    promql_parser.walk(promql_parser.parse(expression), visit)
    return named
