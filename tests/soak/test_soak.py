"""A server under load by clients of every kind for three minutes, and that nothing which is wrong goes unseen."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from tests.server.bench.stub_server import Caller, stub_server
from tests.soak.crowd import (
    SHARES,
    Behaviour,
    Crowd,
    asks_nonsense,
    hardly_reads,
    keeps_states,
    reads_stream,
    reads_whole,
)
from tests.soak.soak import LOAD, Verdict, soak
from tests.soak.watch import Watch


@pytest.mark.long(minutes=4)
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", [7])
def test_three_minutes(seed: int, tmp_path: Path) -> None:
    verdict = soak(3.0, seed, tmp_path, print)
    print(verdict.told())
    assert verdict.failures == []
    assert verdict.rate == LOAD * verdict.capacity > 0
    assert verdict.killed > 10
    done = {what.partition(":")[0] for what in verdict.tally}
    assert done == {behaviour.__name__ for behaviour in SHARES}, "too few requests to meet every kind"
    ended = sum(count for what, count in verdict.tally.items() if what.endswith(": ended"))
    assert ended > 100


WELL = Verdict(
    seed=1,
    seconds=60.0,
    capacity=10.0,
    rate=9.0,
    tally=Counter({"reads_stream: ended": 500}),
    killed=3,
    wrong=[],
    after={
        **dict.fromkeys(("ostinato_slots_used", "ostinato_running", "ostinato_queue_depth", "ostinato_parked"), 0.0),
        "ostinato_sequences_begun_total": 500.0,
        "ostinato_sequences_total": 510.0,
        "ended aborted": 20.0,
        "outcome ok": 490.0,
        "outcome disconnected": 20.0,
    },
    rss=[400.0 * 2**20, 600.0 * 2**20, 407.9 * 2**20],
    slots_used=6.0,
    descriptors=(9, 9),
)


def with_count(name: str, value: float) -> Verdict:
    return replace(WELL, after={**WELL.after, name: value})


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        (replace(WELL, wrong=["reads_stream: it ended early"]), "it ended early"),
        (with_count("ostinato_slots_used", 1.0), "slots_used is 1"),
        (with_count("ostinato_queue_depth", 2.0), "queue_depth is 2"),
        (with_count("ostinato_parked", 1.0), "parked is 1"),
        (with_count("ostinato_sequences_total", 499.0), "500 sequences began, 499 ended"),
        (with_count("ostinato_sequences_total", 521.0), "500 sequences began, 521 ended"),
        (with_count("outcome error", 1.0), "1 requests with outcome error"),
        (with_count("outcome unavailable", 3.0), "3 requests with outcome unavailable"),
        (replace(WELL, rss=[400.0 * 2**20, 408.1 * 2**20]), "memory went from 400.0 to 408.1 MiB"),
        (replace(WELL, rss=[400.0 * 2**20, 391.9 * 2**20]), "memory went from 400.0 to 391.9 MiB"),
        (replace(WELL, descriptors=(9, 10)), "9 open descriptors at the start, 10 at the end"),
    ],
)
def test_what_must_not_be_is_found(verdict: Verdict, words: str) -> None:
    assert WELL.failures == []
    (failure,) = verdict.failures
    assert words in failure
    assert f"WRONG  {failure}" in verdict.told()


def test_memory_is_the_median_of_each_sixth() -> None:
    watch = Watch.__new__(Watch)  # a process is not looked at
    watch.rss = [(float(second), 1000 if second < 100 else 2000 + second) for second in range(160)]
    watch.rss[102] = (102.0, 10**9)
    assert watch.sixths(100.0, 160.0) == [2105.5, 2114.5, 2124.5, 2134.5, 2144.5, 2154.5]


def chunk(finish: str | None = None) -> dict[str, object]:
    return {"choices": [{"index": 0, "text": "a", "finish_reason": finish}]}


@pytest.mark.parametrize(
    ("behaviour", "serve", "words"),
    [
        (reads_stream, lambda caller: caller.stream(chunk(), whole=False), "RemoteProtocolError"),
        (reads_stream, lambda caller: caller.stream(chunk("stop")), "the stream ended with"),
        (reads_stream, lambda caller: caller.stream(chunk(), {"error": {"message": "no luck"}}), "no luck"),
        (reads_stream, lambda caller: caller.refuse(503, "not now"), "503"),
        (reads_whole, lambda caller: caller.refuse(500, "oh"), "500"),
        (keeps_states, lambda caller: caller.refuse(507, "full"), "507"),
        (hardly_reads, lambda caller: caller.refuse(500, "oh"), "HTTP/1.1 500"),
    ],
    ids=["cut", "without an end", "error", "unavailable", "failed", "store full", "raw"],
)
def test_a_request_that_ends_wrongly_is_found(
    behaviour: Behaviour, serve: Callable[[Caller], None], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (wrong,) = sent_to(serve, behaviour, monkeypatch).wrong
    assert wrong.startswith(f"{behaviour.__name__}: ")
    assert words in wrong


@pytest.mark.parametrize("status", [200, 302, 500])
def test_nonsense_that_is_not_refused_is_found(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.soak.crowd.BAD_REQUESTS", (("POST", "/v1/completions", b"{}"),))
    (wrong,) = sent_to(lambda caller: caller.refuse(status, "?"), asks_nonsense, monkeypatch).wrong
    assert str(status) in wrong


@pytest.mark.parametrize("behaviour", [reads_stream, reads_whole, keeps_states, hardly_reads])
def test_a_busy_server_does_nothing_wrong(behaviour: Behaviour, monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = sent_to(lambda caller: caller.refuse(429, "full"), behaviour, monkeypatch)
    assert (crowd.wrong, dict(crowd.tally)) == ([], {f"{behaviour.__name__}: busy": 1})


def sent_to(serve: Callable[[Caller], None], behaviour: Behaviour, monkeypatch: pytest.MonkeyPatch) -> Crowd:
    """One client of a kind, to a server that does as it is told."""
    monkeypatch.setattr("tests.soak.crowd.SHARES", {behaviour: 1})

    async def send(url: str) -> Crowd:
        async with httpx.AsyncClient(base_url=url) as client:
            crowd = Crowd(url, client)
            await crowd.send_one(random.Random(0))
            return crowd

    with stub_server(serve) as url:
        return asyncio.run(send(url))
