"""Runs a model by itself, without the engine: one sequence in one slot of a small state pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ostinato.kernels.packed import Packed
from ostinato.models.base import Model

SLOTS = 3
SLOT = 1  # neither the first nor the last


class Reader:
    """One sequence that a model reads, from an empty state on, or from `state`: by name, [layers, *shape] each."""

    def __init__(self, model: Model, state: Mapping[str, torch.Tensor] | None = None) -> None:
        self._model = model
        self._pool = {
            each.name: torch.zeros((each.layers, SLOTS, *each.shape), dtype=each.dtype)
            for each in model.state_spec.tensors
        }
        for name, tensor in (state or {}).items():
            self._pool[name][:, SLOT] = tensor

    def read(self, ids: Sequence[int]) -> torch.Tensor:
        """The fp32 logits [len(ids), rows] after each of the next tokens."""
        batch = Packed.of([SLOT], [len(ids)], begins=begins(self._pool, [SLOT]))
        with torch.inference_mode():
            hidden = self._model.forward(torch.tensor(ids), batch, self._pool)
            return self._model.logits(hidden)


def begins(pool: Mapping[str, torch.Tensor], slots: Sequence[int]) -> list[int]:
    """Which of the slots belong to a sequence that begins: a slot without a trace of anything. -1 is padding."""
    return [
        i
        for i, slot in enumerate(slots)
        if slot >= 0 and not any(bool(tensor[:, slot].any()) for tensor in pool.values())
    ]


def continue_greedily(model: Model, prompt: Sequence[int], count: int) -> tuple[list[int], torch.Tensor]:
    """The prompt at once, then token by token.

    Returns the `count` most likely next tokens, and the fp32 logits [len(prompt) + count - 1, rows] that they and the
    prompt gave: all tokens but the last are read.
    """
    reader = Reader(model)
    logits = [reader.read(prompt)]
    tokens = [best_token(model, logits[0][-1])]
    while len(tokens) < count:
        logits.append(reader.read(tokens[-1:]))
        tokens.append(best_token(model, logits[-1][-1]))
    return tokens, torch.cat(logits)


def best_token(model: Model, logits: torch.Tensor) -> int:
    """The most likely id: rows that only pad the vocabulary are no tokens."""
    return int(logits[: model.vocab_size].argmax())


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """|ours - theirs| / |theirs|, over all positions together."""
    assert ours.shape == theirs.shape, f"{tuple(ours.shape)} against {tuple(theirs.shape)}"
    return float((ours - theirs).norm() / theirs.norm())
