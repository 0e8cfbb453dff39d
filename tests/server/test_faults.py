"""Injected faults: each does what is promised for it, and nothing else is disturbed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from ostinato.engine.service import Service
from ostinato.engine.types import Sequence, StepPlan
from tests.fakes import Gate
from tests.server.faults import Once, all_zero, answer, body, inject, poison
from tests.server.harness import error_of, idle, real_service, serving, text_service, until

pytestmark = pytest.mark.asyncio
VICTIM, MATES = [9, 8, 7, 6, 5], [[1, 2, 3], [4, 5, 6, 7], [8, 9]]


async def undisturbed() -> list[list[dict[str, Any]]]:
    """What the mates get where nothing goes wrong."""
    async with serving(real_service()) as client:
        return [await answer(client, body(mate)) for mate in MATES]


async def together(client: httpx.AsyncClient, victim: dict[str, Any]) -> tuple[httpx.Response, list[Any]]:
    """The victim and its mates at once, in one batch."""
    tasks = [asyncio.ensure_future(answer(client, body(mate))) for mate in MATES]
    failed = await client.post("/v1/completions", json=victim)
    return failed, list(await asyncio.gather(*tasks))


def is_victim(sequence: Sequence, outputs: int) -> bool:
    return sequence.prompt[-5:] == tuple(VICTIM) and len(sequence.output) == outputs


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
async def test_a_state_that_is_not_finite_ends_its_request_alone(value: float) -> None:
    """It is seen in the logits of the next step; the mates in the batch get the bits of an undisturbed run."""
    expected, service = await undisturbed(), real_service()
    fault = Once(lambda sequence: is_victim(sequence, 4), lambda sequence: poison(service, sequence.slot, value))
    inject(service, before=fault)
    async with serving(service) as client:
        failed, mates = await together(client, body(VICTIM))
        assert fault.done
        assert failed.status_code == 500
        assert error_of(failed)["code"] == "not_finite"
        assert mates == expected
        await idle(service)
        assert all_zero(service)
        assert (await answer(client, body(VICTIM)))[0]["finish_reason"] == "length"
        text = (await client.get("/metrics")).text
        assert 'ostinato_not_finite_total{where="logits"} 1.0' in text
        assert 'ostinato_sequences_total{reason="error"} 1.0' in text


async def test_logits_that_are_not_finite_end_their_request_alone() -> None:
    """Whatever they came from: the state itself is as it should be."""
    expected, service = await undisturbed(), real_service()
    runner = service._engine._runner
    run, hit = runner.run, []

    def broken(plan: StepPlan) -> Any:
        logits = run(plan)
        for chunk, (_, stop) in zip(plan.chunks, logits.spans, strict=True):
            if is_victim(chunk.sequence, 3):
                with torch.inference_mode():
                    logits.rows[stop - 1, 5] = float("nan")
                hit.append(chunk)
        return logits

    runner.run = broken
    async with serving(service) as client:
        failed, mates = await together(client, body(VICTIM))
    assert hit
    assert error_of(failed)["code"] == "not_finite"
    assert "logits" in error_of(failed)["message"]
    assert mates == expected
    assert all_zero(service)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_state_that_is_not_finite_is_never_stored_and_the_last_good_one_stays(
    tmp_path: Path, stream: bool
) -> None:
    """The fault comes behind the last logits, so nothing but a look at the state can see it."""
    service, store = real_service(prefix_cache=1 << 20), {"state_store": (str(tmp_path),)}
    fault = Once(lambda sequence: sequence.closing is not None, lambda sequence: poison(service, sequence.slot))
    async with serving(service, **store) as client:
        good = (await client.post("/v1/completions", json=body([1, 2, 3], store=True))).json()["state"]["id"]
        expected = await answer(client, body(VICTIM, state=good))
        inject(service, after=fault)
        request = body(VICTIM, state=good, store=True, cache_prompt=False, stream=stream)
        response = await client.post("/v1/completions", json=request)
        assert fault.done
        error = error_of(response) if not stream else response.text
        assert "not_finite" in str(error)
        assert "state is not finite" in str(error)
        listed = (await client.get("/v1/states")).json()["data"]
        assert [state["id"] for state in listed] == [good]
        assert await answer(client, body(VICTIM, state=good)) == expected
        assert 'ostinato_not_finite_total{where="state"} 1.0' in (await client.get("/metrics")).text
        await idle(service)
    assert all_zero(service)


@pytest.mark.parametrize("cache", [0, 1 << 20], ids=["alone", "prefix cache"])
async def test_a_request_that_ends_with_a_bad_state_says_so_although_nobody_keeps_it(cache: int) -> None:
    service = real_service(prefix_cache=cache)
    inject(service, after=Once(lambda s: is_victim(s, 11), lambda s: poison(service, s.slot)))
    async with serving(service) as client:
        assert error_of(await client.post("/v1/completions", json=body(VICTIM)))["code"] == "not_finite"
        first = await answer(client, body(VICTIM))
        assert await answer(client, body(VICTIM)) == first, "nothing bad came from the prefix cache"


def unfinished(service: Service) -> int:
    stats = service.stats()
    return stats.running + stats.waiting


async def test_an_exception_in_a_step_ends_those_in_it_and_the_others_go_on() -> None:
    """Those that wait for a slot, and all that come later, are served as ever: also by the tapes of the step."""
    expected, service, gate = await undisturbed(), real_service(max_batch=2), Gate()

    def fail(sequence: Sequence) -> None:
        raise RuntimeError("a kernel died")

    fault = Once(lambda sequence: is_victim(sequence, 2), fail)
    inject(service, before=lambda plan: (gate(plan), fault(plan))[0])
    async with serving(service) as client:
        victims = [asyncio.ensure_future(client.post("/v1/completions", json=body(VICTIM))) for _ in range(2)]
        await until(lambda: unfinished(service) == 2)
        waiting = [asyncio.ensure_future(answer(client, body(mate))) for mate in MATES]
        await until(lambda: unfinished(service) == 2 + len(MATES))
        gate.open()
        for failed in await asyncio.gather(*victims):
            assert failed.status_code == 500
            assert error_of(failed)["code"] == "step_failed"
            assert "a kernel died" in error_of(failed)["message"]
        assert list(await asyncio.gather(*waiting)) == expected
        assert await answer(client, body(MATES[0])) == expected[0]
        await idle(service)
        assert "ostinato_failed_steps_total 1.0" in (await client.get("/metrics")).text
        assert (await client.get("/ready")).status_code == 200
    assert all_zero(service)


async def test_a_step_that_hangs_is_seen_by_ready_and_comes_back() -> None:
    gate = Gate()
    service = text_service(before_step=gate)
    async with serving(service, step_timeout=0.2) as client:
        request = asyncio.ensure_future(client.post("/v1/completions", json={"prompt": "Hi", "max_tokens": 2}))
        await until(lambda: service.step_age > 0.2)
        stuck = await client.get("/ready")
        assert stuck.status_code == 503
        assert "a step has not ended" in error_of(stuck)["message"]
        assert (await client.get("/health")).status_code == 200, "a restart is not asked for: it may come back"
        gate.open()
        assert (await request).status_code == 200
        assert (await client.get("/ready")).status_code == 200


async def test_a_server_with_a_step_that_never_ends_ends_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ostinato.engine.service.STUCK_SECONDS", 0.2)
    gate = Gate()
    service = text_service(before_step=gate)
    async with serving(service) as client:
        request = asyncio.ensure_future(client.post("/v1/completions", json={"prompt": "Hi", "max_tokens": 2}))
        await until(lambda: service.step_age > 0)
        await service.stop()
        failed = await request
        assert failed.status_code == 500
        assert "does not end" in error_of(failed)["message"]
        gate.open()
        await until(lambda: not service.healthy)
