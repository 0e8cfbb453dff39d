"""Soaks a server: nine tenths of the load that it can carry, by clients of every kind, for as long as is asked.

    python -m tests.soak --minutes 30 --seed 1

1. Capacity: so many clients as the server has slots, each sending its next request when the last has ended.
2. Warm-up: 0.9 of that rate, arrivals by chance (Poisson), until caches and heap have the size that they keep.
3. Measured: the same. Resident memory's median in the first sixth of it is compared with that in the last.
4. All end; then no slot may be used, and no sequence may be missing from the server's counts of ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from tests.server.processes import Serving, running
from tests.soak import victim
from tests.soak.crowd import Crowd
from tests.soak.watch import Counters, Watch, settle, settled_descriptors

SLOTS, QUEUE = 8, 64
LOAD = 0.9
CAPACITY_SECONDS = 15.0
WARM_UP_SHARE, WARM_UP_SECONDS = 1 / 5, 60.0  # whichever is longer, but at most half of the time
GROWTH = 0.02
VICTIM_SECONDS = (0.5, 4.0)
# Everything that fills up is small, so that it is full when the warm-up ends.
BUDGETS = ("--prefix-cache", "8MiB", "--state-cache", "8MiB", "--state-store-size", "64MiB", "--state-memory", "16MiB")


@dataclass(frozen=True)
class Verdict:
    """What a soak has shown."""

    seed: int
    seconds: float
    capacity: float  # requests/s
    rate: float  # requests/s
    tally: Counter[str]
    killed: int
    wrong: list[str]
    after: Counters
    rss: list[float]  # bytes: the median in each sixth of the time behind the warm-up
    slots_used: float  # mean
    descriptors: tuple[int, int]  # that the server has open, before the first connection and after the last

    @property
    def growth(self) -> float:
        return self.rss[-1] / self.rss[0] - 1

    @property
    def failures(self) -> list[str]:
        """What must not be; empty if all is well."""
        found = list(self.wrong)
        for name in ("slots_used", "running", "queue_depth", "parked"):
            if self.after[f"ostinato_{name}"]:
                found.append(f"{name} is {self.after[f'ostinato_{name}']:.0f} at the end")
        for outcome in ("error", "unavailable"):
            if count := self.after.get(f"outcome {outcome}"):
                found.append(f"{count:.0f} requests with outcome {outcome}")
        begun, ended = self.after["ostinato_sequences_begun_total"], self.after["ostinato_sequences_total"]
        if not ended - self.after["ended aborted"] <= begun <= ended:  # one that waits may be aborted and never begin
            found.append(f"{begun:.0f} sequences began, {ended:.0f} ended")
        if abs(self.growth) > GROWTH:
            found.append(f"memory went from {self.rss[0] / 2**20:.1f} to {self.rss[-1] / 2**20:.1f} MiB")
        if self.descriptors[1] != self.descriptors[0]:
            found.append(f"{self.descriptors[0]} open descriptors at the start, {self.descriptors[1]} at the end")
        return found

    def told(self) -> str:
        requests, sixths = sum(self.tally.values()), " ".join(f"{size / 2**20:.1f}" for size in self.rss)
        lines = [
            f"seed {self.seed}: {requests} requests in {self.seconds:.0f} s, {self.killed} clients killed",
            f"capacity {self.capacity:.1f} requests/s, load {self.rate:.1f} requests/s",
            f"slots used on average {self.slots_used:.1f} of {SLOTS}",
            f"resident memory by sixths, MiB: {sixths} ({self.growth:+.2%})",
            f"open descriptors {self.descriptors[0]}, then {self.descriptors[1]}",
            f"sequences begun {self.after['ostinato_sequences_begun_total']:.0f}, "
            f"ended {self.after['ostinato_sequences_total']:.0f}, of these aborted {self.after['ended aborted']:.0f}",
            *(f"  {count:7d}  {what}" for what, count in sorted(self.tally.items())),
            *(f"  WRONG  {failure}" for failure in self.failures[:50]),
        ]
        return "\n".join(lines)


class Soak:
    """One server, and the crowd that soaks it."""

    def __init__(self, serving: Serving, client: httpx.AsyncClient, seed: int) -> None:
        self.process = psutil.Process(serving.process.pid)
        self.client = client
        self.seed = seed
        self.crowd = Crowd(serving.url, client)
        self.watch = Watch(self.process, client)
        self.killed = 0

    async def run(self, seconds: float, report: Callable[[str], None]) -> Verdict:
        descriptors = self.process.num_fds()
        async with _beside(self.watch.run()):
            capacity = await self.measure_capacity()
            report(f"capacity {capacity:.2f} requests/s")
            left = seconds - CAPACITY_SECONDS
            warm_up = min(max(WARM_UP_SHARE * left, WARM_UP_SECONDS), left / 2)
            async with _beside(self.kill_clients()):
                await self.arrivals("warm-up", LOAD * capacity, warm_up)
                report("warm")
                start = time.monotonic()
                await self.arrivals("measured", LOAD * capacity, left - warm_up)
                end = time.monotonic()
        report("all have ended")
        after = await settle(self.client)
        await self.client.aclose()
        return Verdict(
            seed=self.seed,
            seconds=seconds,
            capacity=capacity,
            rate=LOAD * capacity,
            tally=self.crowd.tally,
            killed=self.killed,
            wrong=self.crowd.wrong,
            after=after,
            rss=self.watch.sixths(start, end),
            slots_used=sum(self.watch.slots) / len(self.watch.slots),
            descriptors=(descriptors, await settled_descriptors(self.process, descriptors)),
        )

    async def measure_capacity(self) -> float:
        """Requests per second that end when as many clients as there are slots have one at a time."""
        end = time.monotonic() + CAPACITY_SECONDS

        async def client(number: int) -> None:
            draw = random.Random(f"{self.seed}-capacity-{number}")
            while time.monotonic() < end:
                await self.crowd.send_one(draw)

        await asyncio.gather(*map(client, range(SLOTS)))
        return sum(self.crowd.tally.values()) / CAPACITY_SECONDS

    async def arrivals(self, phase: str, rate: float, seconds: float) -> None:
        """Clients that come by chance, whatever the server does; returns when the last of them has ended."""
        draw = random.Random(f"{self.seed}-{phase}")
        due, end = time.monotonic(), time.monotonic() + seconds
        async with asyncio.TaskGroup() as clients:
            number = 0
            while (due := due + draw.expovariate(rate)) < end:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                clients.create_task(self.crowd.send_one(random.Random(f"{self.seed}-{phase}-{number}")))
                number += 1

    async def kill_clients(self) -> None:
        """One process of clients after the other, each ended by SIGKILL; until this is cancelled."""
        draw = random.Random(f"{self.seed}-kills")
        host, port = self.crowd.address
        while True:
            command = [sys.executable, str(Path(victim.__file__)), host, str(port), str(draw.randrange(2**31))]
            process = await asyncio.create_subprocess_exec(*command)
            try:
                await asyncio.sleep(draw.uniform(*VICTIM_SECONDS))
            finally:
                process.send_signal(signal.SIGKILL)
                await process.wait()
            self.killed += 1


@contextlib.asynccontextmanager
async def _beside(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Work that goes on until the block ends. What it raises, the block's end raises."""
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _soak(serving: Serving, minutes: float, seed: int, report: Callable[[str], None]) -> Verdict:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
    async with httpx.AsyncClient(base_url=serving.url, timeout=None, limits=limits) as client:
        return await Soak(serving, client, seed).run(60 * minutes, report)


def soak(minutes: float, seed: int, states: Path, report: Callable[[str], None], model: str = "demo") -> Verdict:
    """Starts a server, soaks it for so many minutes and ends it.

    states: an empty folder for the state store; report: is told when a phase ends.
    """
    sizes = ("--max-batch", str(SLOTS), "--max-queue", str(QUEUE))
    with running(*sizes, *BUDGETS, "--state-store", str(states), "--log-level", "warning", model=model) as serving:
        return asyncio.run(_soak(serving, minutes, seed, report))
