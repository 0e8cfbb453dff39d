"""Runs a plan on a model: tokens in, logits out, states advanced in place."""

from collections.abc import Sequence as Items
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from ostinato.engine.graphs import Capture, Decode, DecodeGraphs, DecodeTapes, Record
from ostinato.engine.guard import Norms
from ostinato.engine.mitigation import UNTOUCHED
from ostinato.engine.reading import AS_TRAINED, Reading, group_alike, reading_of
from ostinato.engine.state_pool import State, StatePool
from ostinato.engine.types import Chunk, StepPlan
from ostinato.kernels import dispatch
from ostinato.kernels.packed import Packed
from ostinato.kernels.treatment import Treatment
from ostinato.models.base import Model


@dataclass(frozen=True, slots=True)
class StepLogits:
    """The logits that a plan asks for.

    rows: [N, vocabulary] fp32 on the CPU. spans: for each chunk of the plan, which rows are its own: one for every
    token if it scores the prompt, else the last token's if it samples or is kept, else none. An empty chunk that asks
    for the last token's has the row that came with its sequence's origin.
    """

    rows: Tensor
    spans: tuple[tuple[int, int], ...]

    def last(self, chunk: int) -> Tensor | None:
        """The last row of a chunk, given by its number: what its sequence predicts next."""
        start, stop = self.spans[chunk]
        return self.rows[stop - 1] if stop > start else None


class Runner:
    """A model and the states of its sequences, on one device.

    batch_invariant: see `ostinato.kernels.dispatch.batch_invariant`. capture: how decode steps are captured as graphs,
    which is done at once. record: how they are recorded as tapes instead, when they are first met. Without either, they
    run like all others.
    """

    def __init__(
        self,
        model: Model,
        pool: StatePool,
        device: str | torch.device,
        *,
        batch_invariant: bool = False,
        capture: Capture | None = None,
        record: Record | None = None,
    ) -> None:
        self._model = model
        self._pool = pool
        self._sums = pool.sums_of_decays()
        self._device = torch.device(device)
        self._batch_invariant = batch_invariant
        self._decode: Decode | None = None
        if capture is not None:
            self._decode = self._captured(capture)
        elif record is not None:
            self._decode = DecodeTapes(model, pool.tensors, pool.num_slots, self._device, record)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> StepLogits:
        """One forward pass over all chunks, and the output projection over the rows that are asked for."""
        starts = accumulate((chunk.length for chunk in plan.chunks), initial=0)
        wanted = [_wanted_rows(chunk, start) for chunk, start in zip(plan.chunks, starts, strict=False)]
        # Copied before the forward pass is launched: a copy to a GPU waits for what runs there.
        rows = torch.tensor([row for rows in wanted for row in rows], dtype=torch.long, device=self._device)
        with dispatch.running(self._device, batch_invariant=self._batch_invariant, dtype=self._model.dtype):
            logits = self._logits(self._forward(plan)[rows]) if any(wanted) else self._no_logits(plan)
            self._mitigate(plan)
        return _with_origins(plan, logits, [len(rows) for rows in wanted])

    def clear(self, slot: int) -> None:
        """Zeroes the state of a slot."""
        self._pool.clear(slot)

    @torch.inference_mode()
    def is_finite(self, slot: int) -> bool:
        """Whether every number in a slot is."""
        return self._pool.is_finite(slot)

    @torch.inference_mode()
    def save(self, slot: int, num_read: int, logits: Tensor | None = None) -> State:
        """A copy of a slot. logits: [vocabulary], copied as well, since it is a row of many."""
        return State(self._pool.save(slot), num_read, None if logits is None else logits.clone())

    @torch.inference_mode()
    def load(self, slot: int, state: State) -> None:
        """Puts a saved state into a slot."""
        self._pool.load(slot, state.tensors)

    @torch.inference_mode()
    def norms(self, slot: int) -> Norms:
        """Of a slot's state."""
        norms = self._pool.norms(slot)
        return Norms(float(norms.max()), float(norms.mean()), self._pool.mean_decay(slot))

    def _forward(self, plan: StepPlan) -> Tensor:
        """One pass for all sequences that are read alike: one for nearly every plan."""
        chunks = [chunk for chunk in plan.chunks if chunk.length]
        groups = group_alike(chunks, adds_up=bool(self._sums))
        if len(groups) == 1:
            ((reading, _),) = groups.items()
            return self._forward_alike(chunks, reading)
        starts = list(accumulate((chunk.length for chunk in chunks), initial=0))
        hidden: Tensor | None = None
        for reading, members in groups.items():
            rows = self._forward_alike([chunks[i] for i in members], reading)
            hidden = rows.new_empty(starts[-1], rows.shape[1]) if hidden is None else hidden
            hidden[[row for i in members for row in range(starts[i], starts[i + 1])]] = rows
        assert hidden is not None  # nothing is asked for of a plan without tokens
        return hidden

    def _forward_alike(self, chunks: Items[Chunk], reading: Reading) -> Tensor:
        slots = [chunk.sequence.slot for chunk in chunks]
        tokens = [token for chunk in chunks for token in chunk.sequence.unread_tokens(chunk.length)]
        if self._decode is not None and reading == AS_TRAINED and _only_decodes(chunks):
            return self._decode.forward(tokens, slots)
        begins = [i for i, chunk in enumerate(chunks) if chunk.sequence.reads_region]
        treatment = None
        if reading != AS_TRAINED:
            treatment = Treatment(reading.forget, reading.remember, self._sums if reading.adds_up else {})
        lengths = [chunk.length for chunk in chunks]
        batch = Packed.of(slots, lengths, device=self._device, begins=begins, treatment=treatment)
        return self._model.forward(torch.tensor(tokens, device=self._device), batch, self._pool.tensors)

    def _mitigate(self, plan: StepPlan) -> None:
        """What is done to states where they have read certain numbers of tokens, and chunks end."""
        for chunk in plan.chunks:
            mitigation = chunk.sequence.mitigation
            if not chunk.length or (mitigation is UNTOUCHED and not self._sums):
                continue  # of an empty chunk, that was done when its state was kept
            slot, end = chunk.sequence.slot, chunk.sequence.num_read + chunk.length
            if reading_of(chunk, adds_up=bool(self._sums)).adds_up:
                self._pool.count_decays(slot, chunk.length)
            if mitigation.window is not None:
                self._pool.begin_window(slot)
                if end % mitigation.window == 0:
                    self._pool.cut_window(slot)
            if mitigation.clip_norm is not None and end % mitigation.clip_beat == 0:
                self._pool.clip(slot, mitigation.clip_norm)

    def _no_logits(self, plan: StepPlan) -> Tensor:
        """Reads what there is to read, for its states alone."""
        if any(chunk.length for chunk in plan.chunks):
            self._forward(plan)
        return torch.empty(0, self._model.vocab_size)

    def _logits(self, hidden: Tensor) -> Tensor:
        # Padding rows of the output matrix are no tokens.
        return self._model.logits(hidden)[:, : self._model.vocab_size].to("cpu")

    @torch.inference_mode()
    def _captured(self, capture: Capture) -> DecodeGraphs:
        with dispatch.running(self._device, batch_invariant=self._batch_invariant, dtype=self._model.dtype):
            return DecodeGraphs(self._model, self._pool.tensors, self._pool.num_slots, self._device, capture)


def _only_decodes(chunks: Items[Chunk]) -> bool:
    return all(map(_decodes, chunks))


def _decodes(chunk: Chunk) -> bool:
    """Whether it is a plain step: a prompt of one token may be an encoder region."""
    return chunk.length == 1 and chunk.samples and not chunk.scores_prompt and not chunk.sequence.reads_region


def _wanted_rows(chunk: Chunk, start: int) -> range:
    stop = start + chunk.length
    if chunk.scores_prompt:
        return range(start, stop)
    return range(stop - 1, stop) if chunk.length and (chunk.samples or chunk.keeps or chunk.looks) else range(0)


def _with_origins(plan: StepPlan, logits: Tensor, counts: list[int]) -> StepLogits:
    """Puts the rows of empty chunks, which are on record, among those that were computed."""
    pieces = list(logits.split(counts))
    for i, chunk in enumerate(plan.chunks):
        origin = chunk.sequence.origin
        if not chunk.length and (chunk.samples or chunk.keeps) and origin is not None and origin.logits is not None:
            pieces[i] = origin.logits.unsqueeze(0)
    spans = tuple(pairwise(accumulate((piece.shape[0] for piece in pieces), initial=0)))
    return StepLogits(logits if len(logits) == (spans[-1][1] if spans else 0) else torch.cat(pieces), spans)
