"""Measuring recall: what a server is asked, and what becomes of its answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from ostinato.server.evals import asking
from ostinato.server.evals.asking import Server
from ostinato.server.evals.errors import AskError
from ostinato.server.evals.question import Question, Task
from ostinato.server.evals.run import Plan, Sheet, measure
from ostinato.server.evals.scoring import whole_line

TASK = Task("colours", "made up", whole_line, 5)


class Knowing:
    """An HTTP server that answers each question as the table says, by how often the context is read."""

    def __init__(self, right: Mapping[int, set[str]]) -> None:
        self.right = right
        self.bodies: list[dict[str, Any]] = []
        self.under_way = self.most = 0
        self.app = FastAPI()
        self.app.post("/v1/completions")(self.complete)

    async def complete(self, request: Request) -> JSONResponse:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        body = await request.json()
        self.bodies.append(body)
        repeat = body["repeat"]
        times = repeat["order"].count("c")
        text = " yes" if repeat["question"] in self.right[times] else " no"
        usage = {"prompt_tokens": 10 * times, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": times}}
        self.under_way -= 1
        return JSONResponse({"choices": [{"text": text}], "usage": usage})

    def server(self) -> Server:
        transport = httpx.ASGITransport(self.app)
        return Server(httpx.AsyncClient(transport=transport, base_url="http://test/v1"), "a-model")


def plan_of(names: str, repeats: tuple[int, ...], **changes: Any) -> Plan:
    questions = [Question(f"text {name}", name, ("yes",), opening="o", chance=0.5) for name in names]
    sheet = Sheet(TASK, 7, questions, questions)
    return Plan(**{"sheets": [sheet], "repeats": repeats, "form": "qccq", "concurrency": 3, "cache": False, **changes})


def silent(*_: object) -> None:
    """No progress bar."""


@pytest.mark.asyncio
async def test_points_and_gains_are_counted() -> None:
    knowing = Knowing({1: set("abc"), 2: set("bcdefg"), 3: set("abcdefgh")})
    report = await measure(knowing.server(), plan_of("abcdefgh", (1, 2, 3)), silent)
    assert [(point.repeat, point.right, point.accuracy) for point in report.points] == [
        (1, 3, 3 / 8),
        (2, 6, 6 / 8),
        (3, 8, 1.0),
    ]
    for point in report.points:
        assert (point.task, point.facts, point.questions, point.chance) == ("colours", 7, 8, 0.5)
        assert point.low < point.accuracy <= point.high
        assert point.scores == {"exact": point.accuracy}
        assert point.prompt_tokens == 80 * point.repeat
        assert point.cached_tokens == 8 * point.repeat
        assert point.read_tokens == 72 * point.repeat
        assert point.completion_tokens == 16
    gains = [(gain.what, gain.won, gain.lost, gain.difference) for gain in report.comparisons]
    assert gains == [("2 x - 1 x", 4, 1, 3 / 8), ("3 x - 1 x", 5, 0, 5 / 8)]
    assert report.comparisons[0].p_value == pytest.approx(0.375)  # 2 (1 + 5) / 32
    assert all(gain.low < gain.difference < gain.high for gain in report.comparisons)


@pytest.mark.asyncio
async def test_what_is_sent() -> None:
    knowing = Knowing({1: set(), 2: set()})
    await measure(knowing.server(), plan_of("a", (1, 2), cache=True), silent)
    common = {"model": "a-model", "max_tokens": 5, "temperature": 0, "stop": "\n", "cache_prompt": True}
    parts = {"context": "text a", "question": "a", "separator": "\n", "join": " "}
    assert knowing.bodies == [
        {**common, "repeat": {**parts, "order": "cq"}},
        {**common, "repeat": {**parts, "order": "qccq", "opening": "o"}},
    ]


@pytest.mark.asyncio
async def test_the_same_sets_in_both_orders_are_compared() -> None:
    sheets = []
    for name, asked in (("disjoint-small", "abcd"), ("disjoint-large", "wxyz")):
        questions = [Question("text", letter, ("yes",)) for letter in asked]
        sheets.append(Sheet(Task(name, "", whole_line, 5), 4, questions, questions))
    knowing = Knowing({1: set("abcw"), 2: set("awx")})
    report = await measure(knowing.server(), plan_of("", (1, 2), sheets=sheets), silent)
    orders = [(each.what, each.won, each.lost) for each in report.comparisons if each.task == "disjoint"]
    assert orders == [("small - large, 1 x", 2, 0), ("small - large, 2 x", 0, 1)]


@pytest.mark.asyncio
async def test_so_many_questions_are_under_way() -> None:
    knowing = Knowing({1: set()})
    seen: list[tuple[str, int, int]] = []
    await measure(knowing.server(), plan_of("abcdefghijkl", (1,)), lambda *report: seen.append(report))
    assert knowing.most <= 3
    assert seen == [("colours 7 facts x1", done, 12) for done in range(13)]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("status", "content", "words"),
    [
        (400, {"error": {"message": "no repeat here"}}, "answers 400: no repeat here"),
        (401, {"detail": "who?"}, "answers 401: {'detail': 'who\\?'}"),
        (200, {"choices": []}, "does not answer as an Ostinato server does"),
        (500, None, "answers 500 without JSON"),
    ],
)
async def test_a_server_that_refuses(status: int, content: Any, words: str) -> None:
    def refuse(_: httpx.Request) -> httpx.Response:
        return httpx.Response(status, json=content) if content is not None else httpx.Response(status, text="oops")

    client = httpx.AsyncClient(transport=httpx.MockTransport(refuse), base_url="http://test/v1")
    with pytest.raises(AskError, match=words):
        await measure(Server(client, "m"), plan_of("abc", (1,)), silent)


@pytest.mark.asyncio
async def test_a_full_queue_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = [2, 0, 0]
    waited = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    def answer(_: httpx.Request) -> httpx.Response:
        if busy:
            return httpx.Response(429, headers={"retry-after": str(busy.pop(0))})
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 0}}
        return httpx.Response(200, json={"choices": [{"text": "x"}], "usage": usage})

    monkeypatch.setattr(asking.asyncio, "sleep", sleep)
    client = httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://test/v1")
    assert (await Server(client, "m").ask({"prompt": "x"}, 1, cache=False)).text == "x"
    assert waited == [2.0, 0.0, 0.0]
    busy.extend([0] * 100)
    with pytest.raises(AskError, match="busy 10 times: lower --concurrency"):
        await Server(client, "m").ask({"prompt": "x"}, 1, cache=False)
