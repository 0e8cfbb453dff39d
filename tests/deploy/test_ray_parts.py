"""What deploy/ray decides by itself: what requests go on from, who gets them, and what it is told. Without Ray."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from deploy.ray.metrics import merged
from deploy.ray.options import RayOptions, parse_devices
from deploy.ray.states import STATES, ranked, short, state_of
from ostinato.server.responses.protocol import state_id_of
from tests.deploy.files import DEPLOY, read_yaml

ONE, OTHER = f"st_{'1' * 64}", f"st_{'2' * 64}"


@pytest.mark.parametrize(
    ("path", "body", "state"),
    [
        ("/v1/completions", {"prompt": "a", "state": ONE}, ONE),
        ("/v1/chat/completions", {"messages": [], "state": ONE}, ONE),
        ("/v1/responses", {"input": "a", "previous_response_id": "resp_1"}, state_id_of("resp_1")),
        ("/v1/responses", {"input": "a"}, None),
        (f"/v1/states/{ONE}", None, ONE),
        (f"/v1/states/{ONE}/fork", {"n": 3}, ONE),
        ("/v1/states", {"prompt": "a", "state": ONE}, ONE),
        ("/v1/completions", {"state": 5}, None),
        ("/v1/completions", [ONE], None),
        ("/v1/models", None, None),
    ],
)
def test_a_request_names_the_state_that_it_goes_on_from(path: str, body: object, state: str | None) -> None:
    assert state_of(path, b"" if body is None else json.dumps(body).encode()) == state


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 100_000, b"1e999", b'"st_"'])
def test_an_unreadable_body_names_no_state(body: bytes) -> None:
    assert state_of("/v1/completions", body) is None


def replica(*states: str, **stats: Any) -> Any:
    return SimpleNamespace(routing_stats={STATES: [short(state) for state in states], **stats})


def test_the_replicas_that_hold_the_state_come_first() -> None:
    first, second, third = replica(ONE), replica(ONE, OTHER), replica()
    holders, anyone = ranked([first, second, third], OTHER)
    assert holders == [second]
    assert len(anyone) == 3
    assert all(each in anyone for each in (first, second, third))


def test_among_equals_either_comes_first() -> None:
    """Ray takes the first of those with the fewest requests: always the same one would get them all."""
    pair = [replica(), replica()]
    assert {id(ranked(pair, None)[0][0]) for _ in range(64)} == set(map(id, pair))


def test_a_replica_that_has_not_reported_holds_nothing() -> None:
    silent = SimpleNamespace(routing_stats={})
    assert ranked([silent], ONE) == [[], [silent]]


def test_metrics_of_replicas_keep_apart() -> None:
    texts = {}
    for name, count in (("a", 2.0), ("b", 3.0)):
        registry = CollectorRegistry()
        Counter("ostinato_requests", "Requests.", ["route"], registry=registry).labels('/v1/"x"').inc(count)
        Gauge("ostinato_slots", "Slots.", registry=registry).set(count)
        texts[name] = generate_latest(registry).decode()
    found = {
        (sample.name, sample.labels["replica"]): (sample.value, sample.labels.get("route"))
        for family in text_string_to_metric_families(merged(texts).decode())
        for sample in family.samples
        if not sample.name.endswith("_created")
    }
    assert found == {
        ("ostinato_requests_total", "a"): (2.0, '/v1/"x"'),
        ("ostinato_requests_total", "b"): (3.0, '/v1/"x"'),
        ("ostinato_slots", "a"): (2.0, None),
        ("ostinato_slots", "b"): (3.0, None),
    }


def test_options_reach_the_settings_of_the_replicas() -> None:
    told = {"model": "demo:gla", "state_store": "/cache,redis://host", "max_batch": "8", "threads": "2"}
    options = RayOptions.model_validate({**told, "drain_seconds": "5", "completion_max_tokens": "7"})
    settings = options.settings
    assert settings.state_store == ("/cache", "redis://host")
    assert (settings.engine.max_batch, settings.engine.threads, settings.engine.device) == (8, 2, "cpu")
    assert settings.engine.model.endswith("gla")
    assert (settings.drain_seconds, settings.completion_max_tokens) == (5.0, 7)
    assert RayOptions(state_store=("none",)).settings.state_store == ()


@pytest.mark.parametrize(
    ("told", "complaint"),
    [
        ({}, "state_store"),
        ({"state_store": ""}, "state_store"),
        ({"state_store": "a", "max_batches": 3}, "max_batches"),
        ({"state_store": "a", "port": 3}, "port"),
        ({"state_store": "a", "max_batch": 0}, "max_batch"),
        ({"state_store": "a", "replicas": 3, "max_replicas": 2}, "max_replicas"),
        ({"state_store": "a", "device": "tpu"}, "device"),
        ({"state_store": "a", "drain_seconds": "soon"}, "drain_seconds"),
    ],
)
def test_wrong_options_are_refused(told: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        RayOptions.model_validate(told)


def test_devices_are_of_one_type_and_each_gpu_is_named_once() -> None:
    assert parse_devices("cpu,cpu") == ("cpu", ["", ""])
    assert parse_devices("cuda:1,cuda:0") == ("cuda", ["1", "0"])


@pytest.mark.parametrize(
    "devices", ["cpu,cuda:0", "cuda:0,cuda:0", "cuda,cuda", "cuda:x", "cpu:0", "", "tpu:0", "cuda:"]
)
def test_other_devices_are_refused(devices: str) -> None:
    with pytest.raises(ValueError, match="cuda:0,cuda:1"):
        parse_devices(devices)


def test_the_example_file_is_taken() -> None:
    """serve.yaml: what it passes to the application."""
    (application,) = read_yaml(DEPLOY / "ray" / "serve.yaml")["applications"]
    assert application["import_path"] == "deploy.ray.app:app"
    options = RayOptions.model_validate(application["args"])
    assert options.max_replicas is not None
    assert options.settings.state_store
