"""What states save: time to the first token by turn, against reading everything again, and the time to restore one.

    python scripts/bench/states.py MODEL

Prints medians. The model needs no tokenizer. Requests go to a server in a thread of the same process.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import torch

from ostinato.engine.config import EngineConfig
from ostinato.engine.loading import load_service
from ostinato.engine.snapshot_file import SnapshotFormat
from ostinato.engine.snapshot_header import Fingerprint
from ostinato.engine.snapshots import Snapshot, TokenLog
from ostinato.engine.state_pool import State, StatePool
from ostinato.engine.states import States, Storing
from ostinato.engine.store.blobs import open_blobs
from ostinato.engine.store.state_store import StateStore, Tier
from ostinato.models.base import StateSpec, StateTensor
from ostinato.server.serve import DrainingServer, open_socket, url_of
from ostinato.server.settings import ServerSettings

TURNS, NEW_TOKENS, ANSWER = 50, 24, 8
HISTORIES = (2048, 8192, 32768)
REPEATS = 7
STATE_FLOATS = 13_107_200  # 50 MiB


async def first_token(client: httpx.AsyncClient, **body: Any) -> tuple[float, str | None]:
    """Seconds to the first token, and the id of the state at the end."""
    start, seconds, state = time.perf_counter(), 0.0, None
    told = {"temperature": 0, "ignore_eos": True, "return_token_ids": True, "stream": True, "cache_prompt": False}
    async with client.stream("POST", "/v1/completions", json={**told, **body}) as response:
        async for line in response.aiter_lines():
            if not seconds and '"token_ids":[' in line:
                seconds = time.perf_counter() - start
            if '"state":{"id":"' in line:
                state = line.split('"state":{"id":"')[1].split('"')[0]
    assert seconds, "no token came"
    return seconds, state


async def turns(client: httpx.AsyncClient) -> None:
    seconds, state = [], None
    for turn in range(TURNS):
        prompt = [1 + (turn * NEW_TOKENS + i) % 300 for i in range(NEW_TOKENS)]
        taken, state = await first_token(client, prompt=prompt, state=state, store=600, max_tokens=ANSWER)
        seconds.append(taken)
    early, late = median(seconds[1:8]), median(seconds[-7:])
    print(f"time to first token: {1e3 * early:.1f} ms in turns 2 to 8, {1e3 * late:.1f} ms in turns 44 to 50", end="")
    print(f" (ratio {late / early:.2f})")


async def histories(client: httpx.AsyncClient) -> None:
    print("history    from the state    reading again    ratio")
    for length in HISTORIES:
        log = [1 + i % 300 for i in range(length)]
        made = (await client.post("/v1/states", json={"prompt": log, "cache_prompt": False}, timeout=None)).json()["id"]
        new = [5] * NEW_TOKENS
        kept = median([(await first_token(client, prompt=new, state=made, max_tokens=1))[0] for _ in range(REPEATS)])
        anew = median([(await first_token(client, prompt=log + new, max_tokens=1))[0] for _ in range(3)])
        print(f"{length:7d}    {1e3 * kept:11.1f} ms    {1e3 * anew:10.1f} ms    {anew / kept:5.1f}")


def restore(folder: Path) -> None:
    """A state of 50 MiB, against reading its file and copying it once."""
    spec = StateSpec((StateTensor("recurrent", 1, (STATE_FLOATS // 128, 128), torch.float32),))
    own = Fingerprint(weights="0" * 64, config="0" * 64, tokenizer=None, dtype="float32", state_dtype="float32")
    states = States(SnapshotFormat(own, spec, 100), StateStore([Tier(open_blobs(folder), 2**30)]), memory=0)
    tensors = {"recurrent": torch.randn(1, STATE_FLOATS // 128, 128)}
    record = states.save("", Snapshot(State(tensors, 3, torch.zeros(100)), TokenLog.of((1, 2, 3))), Storing())
    pool = StatePool(spec, 2)
    pool.load(1, tensors)
    file = folder / "content" / f"{record.content}.safetensors"
    floor, whole = [], []
    for _ in range(REPEATS):
        start = time.perf_counter()
        bytearray(file.read_bytes())
        floor.append(time.perf_counter() - start)
        start = time.perf_counter()
        pool.load(0, states.load("", record.id).state.tensors)
        whole.append(time.perf_counter() - start)
    assert torch.equal(pool.tensors["recurrent"][:, 0], tensors["recurrent"])
    print(
        f"restoring 50 MiB: {1e3 * median(whole):.0f} ms; reading the file and copying it: {1e3 * median(floor):.0f} ms"
    )
    print(f"(ratio {median(whole) / median(floor):.2f})")


@contextmanager
def serving(model: str, folder: Path) -> Iterator[str]:
    """The server, in a thread; its URL."""
    service = load_service(EngineConfig(model, max_batch=2))
    settings = ServerSettings(EngineConfig(model), log_level="warning", state_store=(str(folder),))
    listener, ready = open_socket("127.0.0.1", 0), threading.Event()
    server = DrainingServer(service, settings, ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        ready.wait()
        yield url_of(listener)
    finally:
        server.should_exit = True
        thread.join()


async def measure(url: str) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=None) as client:
        await turns(client)
        await histories(client)


def main(model: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        with serving(model, Path(name) / "turns") as url:
            asyncio.run(measure(url))
        restore(Path(name) / "restore")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    main(parser.parse_args().model)
