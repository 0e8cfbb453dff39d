"""A line for each request, without what people wrote."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import httpx
import pytest

from ostinato.server.telemetry.log_format import JsonFormatter, as_text
from tests.server.harness import serving, text_service
from tests.server.processes import running

pytestmark = pytest.mark.asyncio
SECRET = "xylophone"
PATIENCE = 120  # seconds, for a process to end on a busy machine


class Lines(logging.Handler):
    """What a server would write, one string for each record."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(JsonFormatter())
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    @property
    def requests(self) -> list[dict[str, object]]:
        return [line for line in map(json.loads, self.lines) if line["message"] == "request"]


@pytest.fixture
def log() -> Iterator[Lines]:
    handler, root = Lines(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)


async def test_a_request_is_one_line_with_its_facts(log: Lines) -> None:
    async with serving(text_service()) as client:
        body = {"prompt": "Hi", "max_tokens": 3, "ignore_eos": True}
        await client.post("/v1/completions", json=body, headers={"x-request-id": "mine-1"})
    (line,) = log.requests
    assert {name: line[name] for name in ("request_id", "method", "path", "route", "status", "outcome")} == {
        "request_id": "mine-1",
        "method": "POST",
        "path": "/v1/completions",
        "route": "/v1/completions",
        "status": 200,
        "outcome": "ok",
    }
    assert (line["generated_tokens"], line["finish_reasons"]) == (3, {"length": 1})
    assert line["prompt_tokens"] == 3
    assert 0 < float(str(line["first_token_seconds"])) <= float(str(line["seconds"]))
    assert float(str(line["queue_seconds"])) >= 0
    assert line["level"] == "info"
    assert str(line["time"]).endswith("+00:00")


async def everything(client: httpx.AsyncClient) -> None:
    """Prompts wherever they may stand, in good requests and in bad ones."""
    chat = [{"role": "user", "content": SECRET}]
    for path, body in (
        ("/v1/completions", {"prompt": SECRET, "max_tokens": 1}),
        ("/v1/completions", {"prompt": SECRET, "max_tokens": 1, "stream": True, "echo": True}),
        ("/v1/completions", {"prompt": SECRET, "temperature": SECRET}),
        ("/v1/completions", {"prompt": SECRET, SECRET: 1}),
        ("/v1/chat/completions", {"messages": chat, "max_tokens": 1}),
        ("/v1/responses", {"input": SECRET, "store": False, "max_output_tokens": 1}),
        ("/v1/prompts/preview", {"prompt": SECRET}),
        ("/tokenize", {"prompt": SECRET}),
    ):
        await client.post(path, json=body)
    await client.post("/v1/completions", content=f'{{"prompt": "{SECRET}'.encode())
    await client.get("/v1/prompts/preview", params={"prompt": SECRET})


async def test_no_prompt_is_logged(log: Lines) -> None:
    async with serving(text_service()) as client:
        await everything(client)
    assert len(log.requests) == 10
    assert not [line for line in log.lines if SECRET in line and '"logger": "httpx"' not in line]


async def test_prompts_are_logged_where_that_is_asked_for(log: Lines) -> None:
    async with serving(text_service(), log_prompts=True) as client:
        await client.post("/v1/completions", json={"prompt": [SECRET, "Hi"], "max_tokens": 1})
    (line,) = log.requests
    first, second = line["prompts"]  # type: ignore[misc]  # two texts
    assert SECRET in first
    assert second.endswith("Hi")


async def test_a_failure_has_its_traceback_and_the_id_of_its_request(log: Lines) -> None:
    def fail(plan: object) -> None:
        if not plan.chunks[0].sequence.id.startswith("warm-up"):  # type: ignore[attr-defined]
            raise RuntimeError("boom")

    async with serving(text_service(before_step=fail)) as client:
        await client.post("/v1/completions", json={"prompt": "Hi"}, headers={"x-request-id": "mine-2"})
    (line,) = log.requests
    assert (line["request_id"], line["status"], line["outcome"]) == ("mine-2", 500, "error")
    assert any("RuntimeError: boom" in str(json.loads(text).get("exception")) for text in log.lines)


async def test_probes_are_quiet_unless_they_fail(log: Lines) -> None:
    service = text_service()
    async with serving(service) as client:
        for path in ("/health", "/ready", "/metrics"):
            await client.get(path)
        await service.drain(0)
        await client.get("/ready")
    assert [line["level"] for line in log.requests] == ["debug", "debug", "debug", "info"]


@pytest.mark.parametrize(
    ("value", "written"),
    [("/v1/models", "/v1/models"), ("a b\nINFO: c", r'"a b\nINFO: c"'), (0.5, "0.5"), ({"stop": 1}, '{"stop": 1}')],
)
async def test_a_value_cannot_end_its_line(value: object, written: str) -> None:
    assert as_text({"name": value}) == f"name={written}"


async def test_paths_of_strangers_are_cut_and_quoted(log: Lines) -> None:
    async with serving(text_service()) as client:
        await client.get("/a%0Ab" + "c" * 1000)
    (line,) = log.requests
    assert line["route"] == "other"
    assert len(str(line["path"])) == 200
    assert str(line["path"]).startswith("/a\nb")


@pytest.mark.long
async def test_a_server_writes_nothing_but_json() -> None:
    with running("--log-format", "json") as server:
        httpx.get(f"{server.url}/v1/models")
        server.process.terminate()
        assert server.process.wait(PATIENCE) == 0
    lines = [json.loads(line) for line in server.output]
    assert {"time", "level", "logger", "message"} <= set.intersection(*(set(line) for line in lines))
    assert [line["route"] for line in lines if line["message"] == "request"] == ["/v1/models"]
