"""Faults that tests inject into a served model, and what an undisturbed request gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import torch

from ostinato.engine.runner import Runner, StepLogits
from ostinato.engine.service import Service
from ostinato.engine.types import Sequence, StepPlan

Work = Callable[[StepPlan], None]


def runner_of(service: Service) -> Runner:
    runner = service._engine._runner
    assert isinstance(runner, Runner)
    return runner


def inject(service: Service, *, before: Work | None = None, after: Work | None = None) -> None:
    """Has the engine's thread do something before or after each forward pass."""
    runner = runner_of(service)
    run = runner.run

    def sabotaged(plan: StepPlan) -> StepLogits:
        if before is not None:
            before(plan)
        logits = run(plan)
        if after is not None:
            after(plan)
        return logits

    runner.run = sabotaged


def poison(service: Service, slot: int, value: float = float("nan")) -> None:
    """One number of a slot becomes another."""
    tensors = runner_of(service)._pool.tensors
    max(tensors.values(), key=torch.Tensor.numel)[0, slot].view(-1)[0] = value


def all_zero(service: Service) -> bool:
    """Whether every slot is as it was at the start."""
    return all(bool((tensor == 0).all()) for tensor in runner_of(service)._pool.tensors.values())


class Once:
    """Does its work at the first step in which a sequence fulfils a condition. done: whether that has come."""

    def __init__(self, when: Callable[[Sequence], bool], work: Callable[[Sequence], None]) -> None:
        self.when, self.work = when, work
        self.done = False

    def __call__(self, plan: StepPlan) -> None:
        for chunk in plan.chunks:
            if not self.done and self.when(chunk.sequence):
                self.done = True
                self.work(chunk.sequence)


def body(prompt: list[int], **changes: Any) -> dict[str, Any]:
    """A request whose answer shows every bit that clients get to see."""
    fixed = {"max_tokens": 12, "temperature": 0, "ignore_eos": True, "logprobs": 3, "return_token_ids": True}
    return {"prompt": prompt, **fixed, **changes}


async def answer(client: httpx.AsyncClient, request: dict[str, Any]) -> list[dict[str, Any]]:
    """The choices of an answer, without what names its state."""
    response = await client.post("/v1/completions", json=request)
    assert response.status_code == 200, response.text
    choices: list[dict[str, Any]] = response.json()["choices"]
    return choices
