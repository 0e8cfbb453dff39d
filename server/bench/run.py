"""The open loop of `ostinato bench serve`: requests leave when they are due, whatever has become of those before.

A closed loop, where each client waits for its answer before it asks again, asks less of a slow server, and so never
sees the queue that real users would have stood in (coordinated omission). Here the next request does not wait; where it
has to, since the client itself is too slow or has a bound, latencies still count from the moment when it was due.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

import httpx

from ostinato.server.bench.client import BenchError, Exchange, Target, exchange
from ostinato.server.bench.load import Question, ServeLoad, TokensPerWord, some_words

PROBE_WORDS = (8, 72)  # their difference shows how many tokens a word has
WARM_UP = -1  # before all turns

Progress = Callable[[str, int, int], None]


@dataclass(slots=True)
class Run:
    """One load as it went. start: by the loop's clock; waited: requests that found the bound on requests at once
    reached; inside, most: requests at once, now and at most.
    """

    load: ServeLoad
    start: float
    exchanges: list[Exchange] = field(default_factory=list)
    waited: int = 0
    most: int = 0
    inside: int = 0

    def enter(self) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)

    def leave(self, told: Exchange) -> None:
        self.inside -= 1
        self.exchanges.append(told)


@dataclass(slots=True)
class Unmeasured:
    """What was asked of the server before anything was measured."""

    requests: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0

    def add(self, told: Exchange) -> None:
        self.requests += 1
        self.prompt_tokens += told.prompt_tokens
        self.generated_tokens += told.new_tokens


class ServeBench:
    """Asks one server. concurrency: requests at once at most; None: as many as are due."""

    def __init__(self, client: httpx.AsyncClient, target: Target, concurrency: int | None = None) -> None:
        self.client = client
        self.target = target
        self.concurrency = concurrency
        self.tokens = TokensPerWord()
        self.unmeasured = Unmeasured()

    async def prepare(self, load: ServeLoad, warmup: int, report: Progress) -> None:
        """Finds out how many tokens a word has, and warms the server up with `warmup` requests, one by one.

        Raises:
            BenchError: a request fails.
        """
        counts = []
        for number, words in enumerate(PROBE_WORDS):
            report("tokens per word", number, len(PROBE_WORDS))
            told = await self._unmeasured(some_words(words, seed=words), new_tokens=1)
            counts.append((words, told.prompt_tokens))
        self.tokens = TokensPerWord.between(counts[0], counts[1])
        warming = replace(load, turn=WARM_UP)
        for number, question in enumerate(_first(warming, warmup)):
            report("nothing: warm-up", number, warmup)
            await self._unmeasured(question.prompt(self.tokens), question.new_tokens)

    async def _unmeasured(self, prompt: str, new_tokens: int) -> Exchange:
        told = await exchange(self.client, self.target, prompt, new_tokens, asyncio.get_running_loop().time())
        if told.error:
            kind = told.error.replace("_", " ")
            raise BenchError(f"{self.target.route} cannot be measured, {kind}: {told.complaint}")
        self.unmeasured.add(told)
        return told

    async def run(self, load: ServeLoad, report: Progress) -> Run:
        """All requests of a load, to the end of the last answer. What goes wrong is in the exchanges."""
        clock = asyncio.get_running_loop().time
        arrivals = load.arrivals()
        questions = [(question.prompt(self.tokens), question.new_tokens) for question in _first(load, len(arrivals))]
        places = None if self.concurrency is None else asyncio.Semaphore(self.concurrency)
        run, what = Run(load, clock()), f"{load.rate:g} requests/s"
        report(what, 0, len(arrivals))

        async def send(due: float, prompt: str, new_tokens: int) -> None:
            run.waited += places is not None and places.locked()
            async with places or contextlib.nullcontext():
                run.enter()
                told = await exchange(self.client, self.target, prompt, new_tokens, due)
                run.leave(told)
            report(what, len(run.exchanges), len(arrivals))

        async with asyncio.TaskGroup() as requests:
            for time, (prompt, new_tokens) in zip(arrivals, questions, strict=True):
                due = run.start + time
                if (early := due - clock()) > 0:
                    await asyncio.sleep(early)
                requests.create_task(send(due, prompt, new_tokens))
        return run


def _first(load: ServeLoad, count: int) -> Iterator[Question]:
    return islice(load.questions(), count)
