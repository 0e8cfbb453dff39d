"""What is seen of the server from outside while it is soaked: its memory, its descriptors, its own counters."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

SAMPLE_SECONDS = 0.5
SCRAPE_SECONDS = 5.0
SETTLE_SECONDS = 60.0

Counters = dict[str, float]  # by name, of one with labels the sum; and "outcome ...", "ended ..."


async def scrape(client: httpx.AsyncClient) -> Counters:
    text = (await client.get("/metrics")).text
    counters: Counters = {"ended aborted": 0.0}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            names = [sample.name]
            if sample.name == "ostinato_requests_total":
                names.append(f"outcome {sample.labels['outcome']}")
            if sample.name == "ostinato_sequences_total":
                names.append(f"ended {sample.labels['reason']}")
            for name in names:
                counters[name] = counters.get(name, 0.0) + sample.value
    return counters


@dataclass
class Watch:
    """rss: (seconds, bytes); slots: used, at each scrape. Seconds are those of `time.monotonic`."""

    process: psutil.Process
    client: httpx.AsyncClient
    rss: list[tuple[float, int]] = field(default_factory=list)
    slots: list[float] = field(default_factory=list)

    async def run(self) -> None:
        """Until it is cancelled."""
        scraped = 0.0
        while True:
            now = time.monotonic()
            self.rss.append((now, self.process.memory_info().rss))
            if now - scraped >= SCRAPE_SECONDS:
                scraped = now
                self.slots.append((await scrape(self.client))["ostinato_slots_used"])
            await asyncio.sleep(SAMPLE_SECONDS)

    def sixths(self, start: float, end: float) -> list[float]:
        """Median resident bytes in each sixth of this time."""
        bounds = [start + (end - start) * number / 6 for number in range(7)]
        return [
            median(size for moment, size in self.rss if begin <= moment < until) for begin, until in pairwise(bounds)
        ]


async def settle(client: httpx.AsyncClient) -> Counters:
    """The counters once nothing is running or waiting, or after `SETTLE_SECONDS` as they then are."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        counters = await scrape(client)
        busy = sum(counters[f"ostinato_{name}"] for name in ("slots_used", "running", "queue_depth", "parked"))
        if not busy or time.monotonic() > deadline:
            return counters
        await asyncio.sleep(0.2)


async def settled_descriptors(process: psutil.Process, wanted: int) -> int:
    """Open ones, as soon as they are as many as wanted, or after `SETTLE_SECONDS`."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while (count := process.num_fds()) != wanted and time.monotonic() < deadline:
        await asyncio.sleep(0.2)
    return int(count)
