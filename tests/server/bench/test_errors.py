"""What goes wrong under `ostinato bench serve` is counted by kind, and spoils nothing else. In virtual time."""

from __future__ import annotations

import json

import httpx
import pytest

from ostinato.server.bench.client import BenchError
from ostinato.server.bench.report import remarks, report_of
from tests.server.bench.test_run import answers, chunk, event, exactly, load, measured

FAULTS: dict[str, tuple[str, list[bytes]]] = {
    "no end": ("cut_off", [chunk("a")]),
    "nothing": ("cut_off", []),
    "an error": ("error_in_stream", [chunk("a"), event({"error": {"message": "no luck", "code": "x"}})]),
    "no JSON": ("not_understood", [event("{no")]),
    "a list": ("not_understood", [event([1])]),
    "another shape": ("not_understood", [event({"choices": [{"index": 0}]})]),
    "choices of numbers": ("not_understood", [event({"choices": [5]})]),
    "usage without counts": ("not_understood", [chunk("a", "stop"), event({"usage": {"tokens": 5}})]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_errors_in_streams_are_counted_by_kind(fault: str) -> None:
    """And the others go on: every second answer is well."""
    kind, parts = FAULTS[fault]
    number = 0

    async def answer(request: httpx.Request) -> httpx.Response:
        nonlocal number
        number += 1
        if number <= 2 or number % 2:
            return await answers(0.1, 0.1)(request)
        return httpx.Response(200, content=b"".join(parts))

    (run,) = measured(answer, [load(2.0, 20)])
    report = report_of(run)
    assert report.errors == {kind: 10}
    assert (report.requests, report.completed, report.generated_tokens) == (20, 10, 30)
    assert report.end_to_end == exactly(0.3, 10), "failed requests have no latency"
    assert any(remark.startswith("10 failed") for remark in remarks(report))


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (httpx.ConnectError("refused"), "not_connected"),
        (httpx.ReadTimeout("slow"), "timeout"),
        (httpx.ConnectTimeout(""), "timeout"),
        (httpx.RemoteProtocolError("cut"), "cut_off"),
        (httpx.ReadError(""), "cut_off"),
    ],
)
def test_errors_of_the_network_are_counted_by_kind(raised: httpx.HTTPError, kind: str) -> None:
    async def answer(request: httpx.Request) -> httpx.Response:
        if json.loads(request.content)["max_tokens"] == 1:
            return await answers(0.1, 0.1)(request)
        raise raised

    (run,) = measured(answer, [load(2.0, 3)])
    report = report_of(run)
    assert report.errors == {kind: 3}
    assert report.complaints[kind]
    assert (report.completed_rate, report.first_token, report.end_to_end) == (0.0, None, None)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"error": {"message": "who are you?"}}', "who are you?"),
        (b"<html>no\n such page</html>", "no such page"),
        (b'{"detail": "elsewhere"}', "elsewhere"),
        (b"", "http 403"),
    ],
)
def test_a_server_that_refuses_the_first_request_cannot_be_measured(content: bytes, words: str) -> None:
    async def refuse(request: httpx.Request) -> httpx.Response:
        return httpx.Response(403, content=content)

    with pytest.raises(BenchError, match=r"http://server/v1/completions .*http 403") as caught:
        measured(refuse, [load(1.0, 1)])
    assert words in str(caught.value)
