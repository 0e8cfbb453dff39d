"""Two replicas on Ray: they answer as one server does, go on with each other's conversations, and one may be killed."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.files import require
from tests.deploy.ray_cluster import Cluster, ray_cluster
from tests.server.harness import real_service, serving

pytestmark = [pytest.mark.long(minutes=1), pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

DEMO = Path(__file__).parents[2] / "models" / "demo" / "rwkv7"
CONVERSATIONS, TURNS, KILLED_IN = 20, 4, 2
LENGTHS = (8, 8, 250, 8)  # tokens of the answers; the replica is killed while the long ones are generated
SLOTS = 32
TIMEOUT = 120.0
PATIENCE = 60.0  # seconds that something may take to come about
NAME = "x-ostinato-replica"


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """The texts of the same conversations on a single server, without Ray."""
    require("ray", "ray[serve]")
    states = str(tmp_path_factory.mktemp("alone"))
    return asyncio.run(told_by_one_server(states))


@pytest.fixture(scope="module")
def cluster(expected: list[list[str]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """After the single server: each has the processors to itself."""
    states = tmp_path_factory.mktemp("states")
    sizes = [f"max_batch={SLOTS}", "prefix_cache=0", "max_body_bytes=4096", "max_state_bytes=8388608"]
    with ray_cluster("model=demo", f"state_store={states}", "drain_seconds=5", *sizes) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(cluster: Cluster) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=cluster.url, timeout=TIMEOUT, limits=limits) as client:
        yield client


@dataclass
class Talk:
    """A conversation: what was said, who said it, and the requests that failed on the way."""

    number: int
    texts: list[str] = field(default_factory=list)
    last: str | None = None  # response
    replicas: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def body(self) -> dict[str, Any]:
        """The next turn: greedy in every other conversation, and drawn with a seed of its own in the others."""
        turn = len(self.texts)
        return {
            "input": f"Number {self.number}, turn {turn}: what news on the Rialto?",
            "previous_response_id": self.last,
            "max_output_tokens": LENGTHS[turn],
            "ignore_eos": True,
            "temperature": float(self.number % 2),
            "seed": 100 * self.number + turn,
        }

    async def turn(self, client: httpx.AsyncClient, begun: Counter[str] | None = None) -> None:
        """One turn, which is repeated as it is where it failed. begun: counts streams that have begun, by replica."""
        for _ in range(20):
            streams = self.number % 4 < 2
            ask = self._stream if streams else self._whole
            answer = await ask(client, Counter() if begun is None else begun)
            if answer is not None:
                self.texts.append(answer["output"][0]["content"][0]["text"])
                self.last = answer["id"]
                return
            await asyncio.sleep(0.5)
        raise AssertionError(f"conversation {self.number} does not go on: {self.failures}")

    async def _whole(self, client: httpx.AsyncClient, _: Counter[str]) -> dict[str, Any] | None:
        response = await client.post("/v1/responses", json=self.body())
        if response.status_code == 200:
            self.replicas.append(response.headers.get(NAME, ""))
            found: dict[str, Any] = response.json()
            return found
        assert response.status_code == 503, response.text
        assert int(response.headers["retry-after"]) > 0
        self.failures.append(response.json()["error"]["code"])
        return None

    async def _stream(self, client: httpx.AsyncClient, begun: Counter[str]) -> dict[str, Any] | None:
        async with client.stream("POST", "/v1/responses", json={**self.body(), "stream": True}) as response:
            if response.status_code != 200:
                self.failures.append(json.loads(await response.aread())["error"]["code"])
                assert response.status_code == 503
                return None
            name = response.headers.get(NAME, "")
            begun[name] += 1
            lines = [line async for line in response.aiter_lines() if line.startswith("data: ")]
        last = json.loads(lines[-1].removeprefix("data: "))
        if last["type"] != "error":
            self.replicas.append(name)
            found: dict[str, Any] = last["response"]
            return found
        assert last["sequence_number"] == len(lines) - 1
        self.failures.append(last["code"])
        return None


async def told_by_one_server(states: str) -> list[list[str]]:
    talks = [Talk(number) for number in range(CONVERSATIONS)]
    async with serving(real_service(DEMO, max_batch=CONVERSATIONS), state_store=(states,)) as alone:
        for _ in range(TURNS):
            await asyncio.gather(*(talk.turn(alone) for talk in talks))
    return [talk.texts for talk in talks]


async def until(condition: Callable[[], bool], what: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


async def metrics(client: httpx.AsyncClient) -> dict[tuple[str, str], float]:
    """Values by replica and the series' name with its reason."""
    response = await client.get("/metrics")
    assert response.status_code == 200, response.text
    return {
        (sample.labels["replica"], sample.name + sample.labels.get("reason", "")): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


async def test_the_replicas_answer_as_the_server_does(client: httpx.AsyncClient) -> None:
    """Errors too: what is wrong with a request says the server, whoever reads it first."""
    requests: list[dict[str, Any]] = [
        {"method": "GET", "url": "/ready"},
        {"method": "GET", "url": "/nowhere"},
        {"method": "PUT", "url": "/v1/completions"},
        {"method": "POST", "url": "/v1/completions", "content": b"{"},
        {"method": "POST", "url": "/v1/completions", "json": {"prompt": "a", "state": "st_"}},
        {"method": "POST", "url": "/v1/completions", "content": b"x" * 5000},
        {"method": "POST", "url": "/tokenize", "json": {"prompt": "What news?"}},
        {"method": "GET", "url": f"/v1/states/st_{'0' * 64}", "headers": {"x-request-id": "mine"}},
    ]
    async with serving(real_service(DEMO), max_body_bytes=4096) as alone:
        for request in requests:
            ours, theirs = await client.request(**request), await alone.request(**request)
            if "states" not in request["url"] and "state" not in request.get("json", {}):  # this one keeps none
                assert (ours.status_code, ours.json()) == (theirs.status_code, theirs.json())
            assert len(ours.headers.get_list("x-request-id")) == 1
    assert ours.status_code == 404
    assert ours.headers["x-request-id"] == "mine"


async def test_a_client_that_goes_away_ends_its_request(client: httpx.AsyncClient) -> None:
    body = {"prompt": "What news", "max_tokens": 100_000, "ignore_eos": True, "stream": True}
    async with client.stream("POST", "/v1/completions", json=body) as response:
        replica = response.headers[NAME]
        lines = response.aiter_lines()
        await anext(lines)
        assert (await metrics(client))[replica, "ostinato_slots_used"] == 1
    async with asyncio.timeout(PATIENCE):
        while (found := await metrics(client))[replica, "ostinato_sequences_totalaborted"] < 1:
            await asyncio.sleep(0.1)
    assert found[replica, "ostinato_slots_used"] == 0


async def test_conversations_stay_where_their_states_are(client: httpx.AsyncClient) -> None:
    """Once the replicas have reported; six conversations stay by chance one time in sixty-four."""
    names: list[str | None] = [None] * 6
    states: list[str | None] = [None] * 6
    stayed = 0

    async def turn(number: int) -> bool:
        body = {"prompt": f"{number}.", "max_tokens": 2, "store": True, "state": states[number]}
        response = await client.post("/v1/completions", json=body)
        before, names[number] = names[number], response.headers[NAME]
        states[number] = response.json()["state"]["id"]
        return before == names[number]

    async with asyncio.timeout(PATIENCE):
        while stayed < 3 or len(set(names)) < 2:
            stayed = stayed + 1 if all(await asyncio.gather(*map(turn, range(6)))) else 0
            await asyncio.sleep(3)  # the replicas report every second


async def test_a_killed_replica_loses_no_conversation(
    cluster: Cluster, client: httpx.AsyncClient, expected: list[list[str]]
) -> None:
    """Each goes on from its last stored turn, and says what it would have said on one server."""
    talks = [Talk(number) for number in range(CONVERSATIONS)]
    begun: Counter[str] = Counter()
    for turn in range(TURNS):
        tasks = [asyncio.create_task(talk.turn(client, begun)) for talk in talks]
        if turn == KILLED_IN:
            begun.clear()
            await until(lambda: len(begun) == 2, "a stream on each replica")
            victim = cluster.replicas()[0]
            victim.kill()
        await asyncio.gather(*tasks)
    failures = [failure for talk in talks for failure in talk.failures]
    assert failures, "the killed replica was at work on nothing"
    assert set(failures) == {"engine_stopped"}
    assert len({name for talk in talks for name in talk.replicas[:KILLED_IN]}) == 2, "one replica did all the work"
    assert [talk.texts for talk in talks] == expected
    drawn = {tuple(talk.texts) for talk in talks if talk.number % 2}  # two of the greedy ones say the same
    assert len(drawn) == CONVERSATIONS // 2, "the conversations cannot be told apart"
