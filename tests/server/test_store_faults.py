"""Faults of the state store and of the clock: those who need it are told, and nothing else is disturbed."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest

from ostinato.engine.errors import StoreUnavailableError
from ostinato.engine.store.folder_blobs import FolderBlobs
from ostinato.engine.store.state_store import StateStore
from ostinato.models.errors import OstinatoError
from ostinato.server.states.store import sweep
from tests.server.faults import answer, body
from tests.server.harness import TIMEOUT, error_of, events, idle, real_service, serving, text_service, until

pytestmark = pytest.mark.asyncio
VICTIM = [9, 8, 7, 6, 5]


class SlowStore:
    """Makes every read and write of a state wait. asked: how many do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked, self.opened = 0, threading.Event()
        for name in ("put", "read"):
            monkeypatch.setattr(StateStore, name, self._slowed(getattr(StateStore, name)))

    def _slowed(self, work: Any) -> Any:
        def wait(*arguments: Any, **named: Any) -> Any:
            self.asked += 1
            assert self.opened.wait(TIMEOUT)
            return work(*arguments, **named)

        return wait


async def test_a_slow_store_holds_up_those_alone_who_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More wait than Python has threads for such work by default; texts long enough for a thread are read meanwhile."""
    service = text_service(slots=4, max_queue=200)
    service.snapshots = real_service().snapshots
    slow = SlowStore(monkeypatch)
    async with serving(service, state_store=(str(tmp_path),)) as client:
        lost = [
            asyncio.ensure_future(client.post("/v1/completions", json={"prompt": "Hi", "state": f"st_{i:064x}"}))
            for i in range(3)
        ]
        waiting = [asyncio.ensure_future(client.get(f"/v1/states/st_{i:064x}/content")) for i in range(40)]
        await until(lambda: slow.asked > 0)
        long_text = "to be or not to be " * 600
        others = await events(client, "/v1/completions", prompt=long_text, max_tokens=5, ignore_eos=True)
        assert others[-1] == "[DONE]"
        assert sum(not task.done() for task in waiting) == 40
        slow.opened.set()
        assert {(await task).status_code for task in (*waiting, *lost)} == {404}


async def test_a_store_that_is_down_is_told_to_those_who_need_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = real_service()
    async with serving(service, state_store=(str(tmp_path),), state_memory_bytes=0) as client:
        stored = (await client.post("/v1/completions", json=body([1, 2, 3], store=True))).json()["state"]["id"]
        expected = await answer(client, body(VICTIM, state=stored))

        def down(*_: object) -> None:
            raise StoreUnavailableError("connection refused")

        with monkeypatch.context() as patch:
            for name in ("put", "get_version", "stat", "list"):
                patch.setattr(FolderBlobs, name, down)
            tasks = [
                asyncio.ensure_future(client.post("/v1/completions", json=request))
                for request in (body(VICTIM, store=True), body(VICTIM, state=stored), body(VICTIM))
            ]
            storing, restoring, plain = [await task for task in tasks]
            for response in (storing, restoring):
                assert response.status_code == 503
                assert error_of(response)["code"] == "state_store_unavailable"
            assert plain.status_code == 200
            assert (await client.get("/ready")).status_code == 200
        await idle(service)
        assert await answer(client, body(VICTIM, state=stored)) == expected
        text = (await client.get("/metrics")).text
        assert 'ostinato_states_refused_total{reason="store_unavailable"} 2.0' in text


async def test_a_full_disk_is_told_to_those_who_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file is made as a link to the device that is always full."""
    service = real_service()
    async with serving(service, state_store=(str(tmp_path),)) as client:
        stored = (await client.post("/v1/completions", json=body([1, 2, 3], store=True))).json()["state"]["id"]
        name = uuid.uuid4()
        with monkeypatch.context() as patch:
            patch.setattr("ostinato.engine.store.folder_blobs.uuid.uuid4", lambda: name)
            (tmp_path / "tmp" / name.hex).symlink_to("/dev/full")
            patch.setattr("ostinato.server.completions.new_id", lambda prefix: f"{prefix}{time.monotonic_ns()}")
            plain = asyncio.ensure_future(answer(client, body(VICTIM)))
            refused = await client.post("/v1/completions", json=body(VICTIM, store=True))
            assert refused.status_code == 503
            assert "the disk is full" in error_of(refused)["message"]
            assert len((await plain)[0]["token_ids"]) == 12
        assert [state["id"] for state in (await client.get("/v1/states")).json()["data"]] == [stored]
        assert (await client.post("/v1/completions", json=body(VICTIM, store=True))).status_code == 200
        await idle(service)


@pytest.mark.parametrize("hours", [5, -5])
async def test_a_clock_that_jumps_changes_no_time_to_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """Neither what is there nor what is stored meanwhile ends early, or late; requests go on."""
    service, real, jump = real_service(), time.time, 0.0
    monkeypatch.setattr(time, "time", lambda: real() + jump)
    monkeypatch.setattr("ostinato.server.states.store.SWEEP_SECONDS", 0.05)
    async with serving(service, state_store=(str(tmp_path),)) as client:

        async def store(ttl: float) -> dict[str, Any]:
            response = await client.post("/v1/completions", json=body([1, 2, int(ttl) % 7], store=ttl))
            assert response.status_code == 200, response.text
            state: dict[str, Any] = response.json()["state"]
            return state

        begun, before = real(), await store(3600)
        jump = 3600.0 * hours
        during = await store(3601)
        await asyncio.sleep(0.2)  # some sweeps
        assert before["expires"] == pytest.approx(begun + 3600, abs=TIMEOUT)
        assert during["expires"] == pytest.approx(begun + 3601, abs=TIMEOUT)
        for state in (before, during):
            assert (await client.get(f"/v1/states/{state['id']}")).status_code == 200
        short = await store(0.3)
        await until_gone(client, short["id"])
        jump = 0.0
        for state in (before, during):
            assert (await client.get(f"/v1/states/{state['id']}")).status_code == 200
        assert service.step_age < TIMEOUT


async def until_gone(client: httpx.AsyncClient, state: str) -> None:
    for _ in range(300):
        if (await client.get(f"/v1/states/{state}")).status_code == 404:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("a state outlived its time by far")


async def test_sweeps_go_on_after_one_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ostinato.server.states.store.SWEEP_SECONDS", 0.01)
    asked: list[str] = []

    class Broken:
        def usage(self) -> None:
            asked.append("usage")
            raise OstinatoError("no")

        def sweep(self) -> None:
            asked.append("sweep")
            raise ZeroDivisionError

    class Holder:
        store, usage = Broken(), ()

    task = asyncio.create_task(sweep(Holder()))
    await until(lambda: asked.count("sweep") >= 3)
    assert asked.count("usage") >= 3
    task.cancel()
