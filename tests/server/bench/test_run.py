"""The open loop, its clock and its figures, in virtual time: every latency here is exact."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import replace

import httpx
import numpy
import pytest

from ostinato.server.bench.client import Exchange, Target, api_url
from ostinato.server.bench.load import Lengths, ServeLoad
from ostinato.server.bench.report import RunReport, Spread, remarks, report_of
from ostinato.server.bench.run import Run, ServeBench
from tests.server.bench.virtual_time import run_virtually

TARGET = Target("http://server/v1", "tiny")
Server = Callable[[httpx.Request], Awaitable[httpx.Response]]
LATENCIES = ("first_token", "first_token_from_sending", "end_to_end", "end_to_end_from_sending")


def event(body: object) -> bytes:
    return f"data: {body if isinstance(body, str) else json.dumps(body)}\n\n".encode()


def chunk(text: str, finish: str | None = None) -> bytes:
    return event({"choices": [{"index": 0, "text": text, "finish_reason": finish}]})


def answers(first: float, gap: float, usage: bool = True) -> Server:
    """A server of any capacity: a token after `first` seconds, then one after every `gap`, as many as are asked for."""

    async def answer(request: httpx.Request) -> httpx.Response:
        asked = json.loads(request.content)

        async def stream() -> AsyncIterator[bytes]:
            for number in range(asked["max_tokens"]):
                await asyncio.sleep(gap if number else first)
                yield chunk("word ")
            yield chunk("", "length")
            if usage:
                words = len(asked["prompt"].split())
                yield event({"choices": [], "usage": {"prompt_tokens": words, "completion_tokens": number + 1}})
            yield event("[DONE]")

        return httpx.Response(200, content=stream())

    return answer


def load(rate: float, requests: int, new_tokens: str = "3", prompt_tokens: str = "5") -> ServeLoad:
    return ServeLoad(rate, Lengths.parse(prompt_tokens), Lengths.parse(new_tokens), requests=requests, seed=4)


def measured(server: Server, loads: Iterable[ServeLoad], concurrency: int | None = None, warmup: int = 0) -> list[Run]:
    async def measure() -> list[Run]:
        async with httpx.AsyncClient(transport=httpx.MockTransport(server)) as client:
            bench = ServeBench(client, TARGET, concurrency)
            await bench.prepare(first, warmup, lambda what, done, total: None)
            return [await bench.run(one, lambda what, done, total: None) for one in all_loads]

    first, *_ = all_loads = list(loads)
    return run_virtually(measure())


def exactly(value: float, count: int) -> Spread:
    near = pytest.approx(value)
    return Spread(count, near, near, near, near, near)


def test_latencies_of_a_server_that_keeps_up() -> None:
    (run,) = measured(answers(first=0.5, gap=0.25), [load(rate=2.0, requests=40)])
    report = report_of(run)
    assert report.first_token == report.first_token_from_sending == exactly(0.5, 40)
    assert report.inter_token == exactly(0.25, 80)
    assert report.time_per_token == exactly(0.25, 40)
    assert report.end_to_end == report.end_to_end_from_sending == exactly(1.0, 40)
    assert report.late == exactly(0.0, 40)
    assert (report.fell_behind, report.waited_for_a_place, remarks(report)) == (False, 0, [])
    last = run.load.arrivals()[-1]
    assert report.seconds == pytest.approx(last + 1.0)
    assert report.sent_rate == report.drawn_rate == pytest.approx(40 / last)
    assert report.completed_rate == pytest.approx(40 / (last + 1.0))
    assert (report.prompt_tokens, report.generated_tokens) == (200, 120)
    assert report.generated_tokens_per_second == pytest.approx(120 / (last + 1.0))


def test_requests_leave_when_they_are_due_whatever_the_server_does() -> None:
    """A server that takes an hour for each has all of them at once."""
    (run,) = measured(answers(first=3600.0, gap=1.0), [load(rate=10.0, requests=60)])
    assert sorted(told.sent - run.start for told in run.exchanges) == pytest.approx(run.load.arrivals())
    assert run.most == 60


def test_waiting_in_the_client_counts_in_latencies() -> None:
    """Coordinated omission: seen from sending alone, a client that waits for its turn would see a fast server."""
    (run,) = measured(answers(first=1.0, gap=0.0), [load(math.inf, requests=5)], concurrency=1)
    report = report_of(run)
    assert sorted(told.ended - told.due for told in run.exchanges) == pytest.approx([1.0, 2.0, 3.0, 4.0, 5.0])
    assert report.first_token_from_sending == report.end_to_end_from_sending == exactly(1.0, 5)
    assert report.end_to_end is not None
    assert report.end_to_end.p50 == pytest.approx(3.0)
    assert (report.most_at_once, report.waited_for_a_place) == (1, 4)
    assert (report.asked_rate, report.drawn_rate, report.fell_behind) == (None, None, False)


def test_a_client_that_falls_behind_says_so() -> None:
    (run,) = measured(answers(first=1.0, gap=0.0), [load(rate=4.0, requests=40)], concurrency=2)
    report = report_of(run)
    assert report.fell_behind
    assert report.sent_rate is not None
    assert report.sent_rate < 2.2 < 3.0 < (report.drawn_rate or 0)
    assert report.late is not None
    assert report.late.max == pytest.approx(max(told.sent - told.due for told in run.exchanges))
    said = remarks(report)
    assert "fell behind" in said[0]
    assert "--concurrency" in said[1]


def test_a_bound_that_is_never_reached_changes_nothing() -> None:
    bounded, free = (measured(answers(0.5, 0.1), [load(2.0, 20)], bound)[0] for bound in (20, None))
    assert report_of(bounded) == report_of(free)


def test_no_prompt_is_sent_twice() -> None:
    """A server that keeps what it has read would answer it faster."""
    prompts: list[str] = []

    async def noting(request: httpx.Request) -> httpx.Response:
        prompts.append(json.loads(request.content)["prompt"])
        return await answers(0.1, 0.1)(request)

    loads = [replace(load(rate, 30, prompt_tokens="4:40"), turn=turn) for turn, rate in enumerate((1.0, 50.0))]
    slow, fast = measured(noting, loads, warmup=5)
    assert len(set(prompts)) == len(prompts) == 2 + 5 + 60
    assert sum(told.words for told in slow.exchanges) == sum(told.words for told in fast.exchanges)


def test_without_usage_chunks_and_words_are_counted_and_it_is_said() -> None:
    (run,) = measured(answers(0.5, 0.25, usage=False), [load(2.0, 10)])
    report = report_of(run)
    assert (report.prompt_tokens, report.generated_tokens, report.without_usage) == (50, 30, 10)
    assert "without usage" in remarks(report)[0]


def test_prompts_are_as_long_as_the_server_counts() -> None:
    """Here a word is three tokens, and seven more stand around every prompt."""

    async def answer(request: httpx.Request) -> httpx.Response:
        words = len(json.loads(request.content)["prompt"].split())
        usage = event({"choices": [], "usage": {"prompt_tokens": 7 + 3 * words, "completion_tokens": 1}})
        return httpx.Response(200, content=chunk("x", "stop") + usage + event("[DONE]"))

    (run,) = measured(answer, [load(1.0, 50, prompt_tokens="40:400")])
    wanted = [question.prompt_tokens for question, _ in zip(run.load.questions(), range(50), strict=False)]
    counted = [told.prompt_tokens for told in sorted(run.exchanges, key=lambda told: told.due)]
    assert all(abs(want - count) <= 1.5 for want, count in zip(wanted, counted, strict=True))


def test_what_is_asked_before_is_counted_apart() -> None:
    async def prepare() -> ServeBench:
        async with httpx.AsyncClient(transport=httpx.MockTransport(answers(0.1, 0.1))) as client:
            bench = ServeBench(client, TARGET)
            await bench.prepare(load(1.0, 9), 3, lambda what, done, total: None)
            return bench

    told = run_virtually(prepare()).unmeasured
    assert (told.requests, told.prompt_tokens, told.generated_tokens) == (2 + 3, 8 + 72 + 3 * 5, 2 + 3 * 3)


def test_bodies() -> None:
    plain, chat = (Target("http://x/v1", "m", chat, extra={"temperature": 0}) for chat in (False, True))
    usage = {"stream_options": {"include_usage": True}, "temperature": 0, "stream": True, "model": "m"}
    assert plain.body("hi", 5) == {"prompt": "hi", "max_tokens": 5, **usage}
    assert chat.body("hi", 5) == {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, **usage}
    assert "stream_options" not in Target("http://x/v1", "m", usage=False).body("hi", 5)
    assert (plain.route, chat.route) == ("http://x/v1/completions", "http://x/v1/chat/completions")


@pytest.mark.parametrize(
    ("url", "api"),
    [
        ("http://host:8000", "http://host:8000/v1"),
        ("http://host:8000/", "http://host:8000/v1"),
        ("https://host/v1/", "https://host/v1"),
        ("https://host/some/api", "https://host/some/api"),
    ],
)
def test_the_address_of_the_api(url: str, api: str) -> None:
    assert api_url(url) == api


@pytest.mark.parametrize("url", ["", "host", "localhost:8000", "ftp://host", "http://", "http://[::"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ValueError, match="no URL"):
        api_url(url)


@pytest.mark.parametrize("seed", [0, 1])
def test_quantiles_are_those_of_the_samples(seed: int) -> None:
    values = numpy.random.default_rng(seed).lognormal(size=500)
    spread = Spread.of(values)
    assert spread is not None
    ordered = sorted(values)
    assert spread.p50 == pytest.approx((ordered[249] + ordered[250]) / 2)
    assert ordered[494] <= spread.p99 <= ordered[495]
    assert (spread.count, spread.max, spread.mean) == (500, ordered[-1], pytest.approx(sum(ordered) / 500))
    assert Spread.of([]) is None


def test_a_run_without_requests_is_told() -> None:
    empty = Run(ServeLoad(1e-9, Lengths.parse("1"), Lengths.parse("1"), seconds=1.0), start=5.0)
    report: RunReport = report_of(empty)
    assert (report.requests, report.completed_rate, report.late, report.seconds) == (0, 0.0, None, 0.0)


def test_chunks_without_text_are_no_tokens() -> None:
    """The first one of a chat names the role alone, and a character may be held back."""

    async def answer(request: httpx.Request) -> httpx.Response:
        async def stream() -> AsyncIterator[bytes]:
            yield event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
            await asyncio.sleep(2.0)
            yield event({"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]})
            yield event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            yield event("[DONE]")

        return httpx.Response(200, content=stream())

    (run,) = measured(answer, [load(1.0, 2)])
    told: list[Exchange] = run.exchanges
    assert [len(one.chunks) for one in told] == [1, 1]
    assert report_of(run).first_token == exactly(2.0, 2)
