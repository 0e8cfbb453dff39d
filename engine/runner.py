"""Runs a plan on a model: tokens in, logits out, states advanced in place."""

from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from ostinato.engine.graphs import Capture, DecodeGraphs
from ostinato.engine.state_pool import StatePool
from ostinato.engine.types import Chunk, StepPlan
from ostinato.kernels import dispatch
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
    """A model and the states of its sequences, on one device.

    batch_invariant: see `ostinato.kernels.dispatch.batch_invariant`. capture: how decode steps are captured as graphs,
    which is done at once; None runs them like all others.
    """

    def __init__(
        self,
        model: Model,
        pool: StatePool,
        device: str | torch.device,
        *,
        batch_invariant: bool = False,
        capture: Capture | None = None,
    ) -> None:
        self._model = model
        self._pool = pool
        self._device = torch.device(device)
        self._batch_invariant = batch_invariant
        self._graphs = None if capture is None else self._captured(capture)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> StepLogits:
        """One forward pass over all chunks, and the output projection over the rows that are asked for."""
        starts = accumulate((chunk.length for chunk in plan.chunks), initial=0)
        wanted = [_wanted_rows(chunk, start) for chunk, start in zip(plan.chunks, starts, strict=False)]
        ends = accumulate((len(rows) for rows in wanted), initial=0)
        # Copied before the forward pass is launched: a copy to a GPU waits for what runs there.
        rows = torch.tensor([row for rows in wanted for row in rows], dtype=torch.long, device=self._device)
        with dispatch.running(self._device, batch_invariant=self._batch_invariant, dtype=self._model.dtype):
            logits = self._logits(self._forward(plan)[rows])
        return StepLogits(logits, tuple(pairwise(ends)))

    def clear(self, slot: int) -> None:
        """Zeroes the state of a slot."""
        self._pool.clear(slot)

    def _forward(self, plan: StepPlan) -> Tensor:
        slots = [chunk.sequence.slot for chunk in plan.chunks]
        tokens = [token for chunk in plan.chunks for token in chunk.sequence.unread_tokens(chunk.length)]
        if self._graphs is not None and _only_decodes(plan):
            return self._graphs.forward(tokens, slots)
        batch = Packed.of(slots, [chunk.length for chunk in plan.chunks], device=self._device)
        return self._model.forward(torch.tensor(tokens, device=self._device), batch, self._pool.tensors)

    def _logits(self, hidden: Tensor) -> Tensor:
        vocabulary = self._model.vocab_size  # padding rows of the output matrix are no tokens
        if not hidden.shape[0]:
            return torch.empty(0, vocabulary)
        return self._model.logits(hidden)[:, :vocabulary].to("cpu")

    @torch.inference_mode()
    def _captured(self, capture: Capture) -> DecodeGraphs:
        with dispatch.running(self._device, batch_invariant=self._batch_invariant, dtype=self._model.dtype):
            return DecodeGraphs(self._model, self._pool.tensors, self._pool.num_slots, self._device, capture)


def _only_decodes(plan: StepPlan) -> bool:
    return all(chunk.length == 1 and chunk.samples and not chunk.scores_prompt for chunk in plan.chunks)


def _wanted_rows(chunk: Chunk, start: int) -> range:
    stop = start + chunk.length
    if chunk.scores_prompt:
        return range(start, stop)
    return range(stop - 1, stop) if chunk.samples else range(0)
