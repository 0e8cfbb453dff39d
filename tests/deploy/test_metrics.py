"""Every expression of the dashboard, the alerts and the autoscaler's adapter names what /metrics of a model has."""

from __future__ import annotations

import re
import subprocess
from typing import Any

import pytest
import pytest_asyncio

from ostinato.engine.events import FinishReason
from tests.deploy.files import DEPLOY, program, read_yaml
from tests.deploy.promql import (
    OWN_SERIES,
    TARGET_LABELS,
    Series,
    adapter_rules,
    alerts,
    expressions,
    names_in,
    panels,
    scraped,
    variables,
)
from tests.server.harness import real_service, serving

PROMTOOL = "Debian's package prometheus has it"
EXPRESSIONS = expressions()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scrape() -> dict[str, Series]:
    """After one request that was answered and one that was refused."""
    async with serving(real_service()) as client:
        answer = await client.post("/v1/completions", json={"prompt": [1, 2, 3], "max_tokens": 4})
        assert answer.status_code == 200, answer.text
        assert (await client.post("/v1/completions", json={"prompt": 1.5})).status_code == 400
        return scraped((await client.get("/metrics")).text)


def outcomes(scrape: dict[str, Series]) -> set[str]:
    """All that there may be: a scrape has only those that occurred, but the help lists them."""
    _, _, listed = scrape["ostinato_requests_total"].help.partition(":")
    return {word.strip(" .") for word in listed.split(",")}


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_series_and_labels_exist(where: str, scrape: dict[str, Series]) -> None:
    named = names_in(EXPRESSIONS[where])
    assert named.metrics, "the expression names no series"
    assert named.metrics <= scrape.keys() | OWN_SERIES
    labels = {name: TARGET_LABELS | set(scrape[name].labels) for name in named.metrics - OWN_SERIES}
    for matcher in named.matchers:
        assert matcher.label in labels.get(matcher.metric, TARGET_LABELS), matcher
    for metric, known in labels.items():
        assert named.grouped <= known, metric


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_values_of_labels_exist(where: str, scrape: dict[str, Series]) -> None:
    known = {
        ("ostinato_requests_total", "outcome"): outcomes(scrape),
        ("ostinato_requests_total", "route"): scrape["ostinato_requests_total"].labels["route"],
        ("ostinato_sequences_total", "reason"): {str(reason) for reason in FinishReason},
        ("ostinato_states_refused_total", "reason"): scrape["ostinato_states_refused_total"].labels["reason"],
    }
    for matcher in names_in(EXPRESSIONS[where]).matchers:
        if matcher.label in TARGET_LABELS:
            continue
        for pattern in matcher.value.split("|"):
            assert any(re.fullmatch(pattern, value) for value in known[matcher.metric, matcher.label]), matcher


def test_the_help_lists_the_outcomes(scrape: dict[str, Series]) -> None:
    assert {"ok", "invalid"} == scrape["ostinato_requests_total"].labels["outcome"]
    assert {"ok", "invalid", "error", "queue_full"} < outcomes(scrape)


def test_a_wrong_expression_is_noticed() -> None:
    named = names_in('sum by (rout) (rate(ostinato_request_total{outcom="ok"}[5m])) / on (host) ostinato_slots')
    assert named.metrics == {"ostinato_request_total", "ostinato_slots"}
    assert named.grouped == {"rout", "host"}
    assert {matcher.label for matcher in named.matchers} == {"outcom"}
    with pytest.raises(ValueError, match=r"invalid|unexpected|parse"):
        names_in("rate(ostinato_steps_total)[")


def test_variables_ask_for_series_that_exist(scrape: dict[str, Series]) -> None:
    found = list(variables())
    assert found
    for metric, label in found:
        assert metric in scrape
        assert label in TARGET_LABELS | set(scrape[metric].labels)


@pytest.mark.parametrize(("title", "targets"), [pytest.param(*panel, id=panel[0]) for panel in panels()])
def test_legends_name_labels_of_the_result(title: str, targets: list[dict[str, Any]]) -> None:
    for target in targets:
        grouped = names_in(EXPRESSIONS[f"panel {title} {target['refId']}"]).grouped
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= grouped


def test_the_adapter_finds_pods(scrape: dict[str, Series]) -> None:
    for rule in adapter_rules():
        assert rule["name"]["matches"] in scrape
        assert {matcher.label for matcher in names_in(rule["seriesQuery"]).matchers} == {"namespace", "pod"}


def promtool(*arguments: str) -> None:
    command = [program("promtool", PROMTOOL), *arguments]
    result = subprocess.run(command, cwd=DEPLOY / "prometheus", capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr


def test_prometheus_takes_its_configuration_and_the_rules() -> None:
    promtool("check", "config", "prometheus.yml")


def test_alerts_come_when_they_should_and_not_else() -> None:
    promtool("test", "rules", "alerts_test.yml")


def test_every_alert_has_a_case_that_raises_it() -> None:
    tests = read_yaml(DEPLOY / "prometheus" / "alerts_test.yml")["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == {rule["alert"] for rule in alerts()}
