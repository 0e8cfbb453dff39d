"""Limits of API keys: requests and tokens per minute, requests at once. The clock is the test's."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from ostinato.engine.types import StepPlan
from ostinato.server.errors import RateLimitError
from ostinato.server.security.api_keys import KeyLimits
from ostinato.server.security.meters import Bucket, Meter, Meters, duration
from tests.server.harness import TIMEOUT, error_of, events, text_service, until
from tests.server.security.keyed import Clock, Tenants, serving_keys


def limits_in(response: httpx.Response) -> dict[str, str]:
    start = "x-ratelimit-"
    return {name.removeprefix(start): value for name, value in response.headers.items() if name.startswith(start)}


def test_a_bucket_fills_evenly_and_not_beyond_its_size() -> None:
    clock = Clock()
    bucket = Bucket(120, clock)
    assert bucket.level == 120
    bucket.take(120)
    assert bucket.wait(1) == 0.5
    clock.now += 30
    assert bucket.level == 60
    clock.now += 10_000
    assert bucket.level == 120


def test_a_bucket_pays_its_debts_first() -> None:
    clock = Clock()
    bucket = Bucket(60, clock)
    bucket.take(100)
    assert bucket.level == -40
    assert bucket.wait(0) == 40
    assert bucket.wait(1) == 41
    clock.now += 41
    assert bucket.wait(1) == 0


def test_a_meter_whose_limits_change_goes_on_with_those_that_stay() -> None:
    meter = Meter(Clock())
    meter.set_limits(KeyLimits(requests_per_minute=2, tokens_per_minute=10))
    meter.enter()
    meter.enter()
    with pytest.raises(RateLimitError):
        meter.enter()
    meter.set_limits(KeyLimits(requests_per_minute=2))
    with pytest.raises(RateLimitError):
        meter.enter()
    meter.check_tokens(10**9)
    meter.set_limits(KeyLimits(requests_per_minute=3))
    meter.enter()
    meter.set_limits(KeyLimits())
    assert meter.headers() == {}
    assert meter.running == 3, "those that were refused do not run"


def test_owners_have_meters_of_their_own() -> None:
    meters, limits = Meters(Clock()), KeyLimits(requests_per_minute=1)
    meters.limited("a", limits).enter()
    meters.limited("b", limits).enter()
    with pytest.raises(RateLimitError):
        meters.limited("a", limits).enter()
    assert meters.of("a") is meters.limited("a", limits)
    meters.of("unknown").check_tokens(10**9)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.02, "20ms"), (0.9999, "1s"), (1, "1s"), (7.1, "8s"), (60, "1m0s"), (90, "1m30s"), (3600, "60m0s")],
)
def test_durations_read_as_with_openai(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.fixture
def tenants(tmp_path: Path) -> Tenants:
    return Tenants(tmp_path / "keys.json")


@pytest.mark.asyncio
async def test_requests_per_minute(tenants: Tenants) -> None:
    clock = Clock()
    tenants.add("alice", requests_per_minute=3)
    tenants.add("bob", requests_per_minute=3)
    alice, bob = tenants.bearer("alice"), tenants.bearer("bob")
    async with serving_keys(text_service(), tenants, clock, open_metrics=True) as client:
        left = [limits_in(await client.get("/v1/models", headers=alice)) for _ in range(3)]
        assert [found["remaining-requests"] for found in left] == ["2", "1", "0"]
        assert [found["reset-requests"] for found in left] == ["20s", "40s", "1m0s"]
        assert {found["limit-requests"] for found in left} == {"3"}
        refused = await client.get("/v1/models", headers=alice)
        assert refused.status_code == 429
        assert error_of(refused)["code"] == "rate_limit_exceeded"
        assert refused.headers["retry-after"] == "20"
        assert limits_in(refused)["remaining-requests"] == "0"
        assert (await client.get("/v1/models", headers=bob)).status_code == 200
        clock.now += 20
        assert (await client.get("/v1/models", headers=alice)).status_code == 200
        assert (await client.get("/v1/models", headers=alice)).status_code == 429
        text = (await client.get("/metrics")).text
        assert 'ostinato_requests_total{outcome="limited",route="other"} 2.0' in text


@pytest.mark.asyncio
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_tokens_per_minute_count_the_prompt_and_the_answer(tenants: Tenants, stream: bool) -> None:
    """The prompt must fit; an answer that began is not cut short, and what it is over has to come back first."""
    clock = Clock()
    tenants.add("alice", tokens_per_minute=60)
    async with serving_keys(text_service(), tenants, clock) as client:
        client.headers.update(tenants.bearer("alice"))
        ask = {"max_tokens": 30, "ignore_eos": True, "temperature": 0}
        if stream:
            await events(client, "/v1/completions", prompt=[1] * 40, **ask)
        else:
            done = await client.post("/v1/completions", json={"prompt": [1] * 40, **ask})
            assert done.json()["usage"]["total_tokens"] == 70
            assert limits_in(done) == {"limit-tokens": "60", "remaining-tokens": "0", "reset-tokens": "1m10s"}
        refused = await client.post("/v1/completions", json={"prompt": [1] * 5, "stream": stream, **ask})
        assert (refused.status_code, error_of(refused)["code"]) == (429, "rate_limit_exceeded")
        assert refused.headers["retry-after"] == "15", "ten that are owed, and five"
        clock.now += 14
        assert (await client.post("/v1/completions", json={"prompt": [1] * 5, **ask})).status_code == 429
        clock.now += 1
        assert (await client.post("/v1/completions", json={"prompt": [1] * 5, **ask})).status_code == 200


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": [1] * 61}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "never mind " * 60}]}),
        ("/v1/responses", {"input": "never mind " * 60}),
    ],
)
async def test_a_prompt_that_never_fits_is_not_to_be_sent_again(
    tenants: Tenants, path: str, body: dict[str, object]
) -> None:
    tenants.add("alice", tokens_per_minute=60)
    service = text_service()
    async with serving_keys(service, tenants) as client:
        response = await client.post(path, json=body, headers=tenants.bearer("alice"))
        assert (response.status_code, error_of(response)["code"]) == (429, "rate_limit_exceeded")
        assert response.headers["x-should-retry"] == "false"
        assert "retry-after" not in response.headers
        assert limits_in(response)["remaining-tokens"] == "60", "nothing was taken"
        assert service.stats().prompt_tokens_total == 0


@pytest.mark.asyncio
async def test_what_the_queue_refuses_costs_no_tokens(tenants: Tenants) -> None:
    tenants.add("alice", tokens_per_minute=1000)
    async with serving_keys(text_service(slots=1, max_queue=0), tenants) as client:
        body = {"prompt": [1] * 10, "n": 2}
        response = await client.post("/v1/completions", json=body, headers=tenants.bearer("alice"))
        assert response.status_code == 400
        assert limits_in(response)["remaining-tokens"] == "1000"


def held_back(granted: queue.SimpleQueue[None]) -> Callable[[StepPlan], None]:
    def before_step(plan: StepPlan) -> None:
        if not plan.chunks[0].sequence.id.startswith("warm-up"):
            granted.get(timeout=TIMEOUT)

    return before_step


@pytest.mark.asyncio
async def test_requests_at_once(tenants: Tenants) -> None:
    """A place is free again when the answer is complete, and when its client has gone."""
    tenants.add("alice", concurrency=2)
    tenants.add("bob", concurrency=2)
    granted: queue.SimpleQueue[None] = queue.SimpleQueue()
    service = text_service(before_step=held_back(granted))
    async with serving_keys(service, tenants) as client:
        ask = {"prompt": [1], "max_tokens": 1}

        def send(name: str) -> asyncio.Task[httpx.Response]:
            return asyncio.ensure_future(client.post("/v1/completions", json=ask, headers=tenants.bearer(name)))

        running = [send("alice"), send("alice")]
        await until(lambda: service.stats().running + service.stats().waiting == 2)
        refused = await send("alice")
        assert (refused.status_code, error_of(refused)["code"]) == (429, "rate_limit_exceeded")
        assert refused.headers["retry-after"] == "1"
        others = send("bob")
        await until(lambda: service.stats().running + service.stats().waiting == 3)
        for _ in range(20):
            granted.put(None)
        assert [(await task).status_code for task in [*running, others]] == [200] * 3
        assert (await send("alice")).status_code == 200
