"""Runs a plan on a model: tokens in, logits out, states advanced in place."""

from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from ostinato.engine.state_pool import StatePool
from ostinato.engine.types import Chunk, StepPlan
from ostinato.kernels.packed import Packed
from ostinato.models.base import Model


@dataclass(frozen=True, slots=True)
class StepLogits:
    """The logits that a plan asks for.

    rows: [N, vocabulary] fp32 on the CPU. spans: for each chunk of the plan, which rows are its own: one for every
    token if it scores the prompt, else the last token's if it samples, else none.
    """

    rows: Tensor
    spans: tuple[tuple[int, int], ...]


class Runner:
    """A model and the states of its sequences, on one device."""

    def __init__(self, model: Model, pool: StatePool, device: str | torch.device) -> None:
        self._model = model
        self._pool = pool
        self._device = torch.device(device)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> StepLogits:
        """One forward pass over all chunks, and the output projection over the rows that are asked for."""
        lengths = [chunk.length for chunk in plan.chunks]
        starts = [0, *accumulate(lengths)]
        tokens = [token for chunk in plan.chunks for token in chunk.sequence.unread_tokens(chunk.length)]
        batch = Packed.of([chunk.sequence.slot for chunk in plan.chunks], lengths, device=self._device)
        hidden = self._model.forward(torch.tensor(tokens, device=self._device), batch, self._pool.tensors)
        wanted = [_wanted_rows(chunk, start) for chunk, start in zip(plan.chunks, starts[:-1], strict=True)]
        ends = [0, *accumulate(len(rows) for rows in wanted)]
        rows = torch.tensor([row for rows in wanted for row in rows], dtype=torch.long, device=self._device)
        return StepLogits(self._logits(hidden[rows]), tuple(pairwise(ends)))

    def clear(self, slot: int) -> None:
        """Zeroes the state of a slot."""
        self._pool.clear(slot)

    def _logits(self, hidden: Tensor) -> Tensor:
        vocabulary = self._model.vocab_size  # padding rows of the output matrix are no tokens
        if not hidden.shape[0]:
            return torch.empty(0, vocabulary)
        return self._model.logits(hidden)[:, :vocabulary].to("cpu")


def _wanted_rows(chunk: Chunk, start: int) -> range:
    stop = start + chunk.length
    if chunk.scores_prompt:
        return range(start, stop)
    return range(stop - 1, stop) if chunk.samples else range(0)
