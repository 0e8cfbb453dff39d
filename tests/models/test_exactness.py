"""Whole models over a thousand random batches: whoever shares them, a sequence's logits have the bits that it gets when
it is read alone, token by token."""

import random

import pytest
import torch
from torch import Tensor

from ostinato.kernels.dispatch import supported_dtypes
from ostinato.models.base import Model
from ostinato.models.registry import load_model
from tests.models.test_contract import CHECKPOINTS, SLOTS, Reader, begin_with, open_small, random_tokens

DTYPES = supported_dtypes(torch.device("cpu"))
BATCHES = -(-1000 // (len(CHECKPOINTS) * len(DTYPES)))
LENGTH, TEXTS = 40, 6


class Walk:
    """Sequences that begin, go on in random chunks and end in random slots; every batch is compared."""

    def __init__(self, model: Model, seed: int) -> None:
        self.draw = random.Random(seed)
        self.reader = Reader(model)
        self.texts = [random_tokens(model, LENGTH, seed * TEXTS + i) for i in range(TEXTS)]
        self.first = begin_with(model, 1)
        lengths = [self.first] + [1] * (LENGTH - self.first)
        self.alone = [Reader(model).read_in_pieces(0, text, lengths) for text in self.texts]
        self.running: dict[int, tuple[int, int]] = {}  # slot -> text, tokens read

    def next_batch(self) -> dict[int, list[int]]:
        for slot in range(SLOTS):
            if slot not in self.running and (slot == 0 or self.draw.random() < 0.7):
                self.reader.pool.clear(slot)
                self.running[slot] = (self.draw.randrange(TEXTS), 0)
        slots = self.draw.sample(sorted(self.running), self.draw.randint(1, len(self.running)))
        chunks = {}
        for slot in slots:
            text, read = self.running[slot]
            count = self.draw.choice((1, 1, 2, 3, 7, 20))
            chunks[slot] = self.texts[text][read : read + (count if read else max(count, self.first))]
        return chunks

    def advance(self, slot: int, count: int) -> Tensor:
        """The logits that these tokens must have."""
        text, read = self.running[slot]
        self.running[slot] = (text, read + count)
        if read + count >= LENGTH:
            del self.running[slot]
        return self.alone[text][read : read + count]


@pytest.mark.parametrize("dtype", DTYPES, ids=[str(dtype).removeprefix("torch.") for dtype in DTYPES])
@pytest.mark.parametrize("architecture", sorted(CHECKPOINTS))
def test_random_batches(architecture: str, dtype: torch.dtype) -> None:
    seed, threads = sorted(CHECKPOINTS).index(architecture), torch.get_num_threads()
    with open_small(architecture) as checkpoint:
        walk = Walk(load_model(checkpoint, dtype=dtype), seed)
    try:
        for batch in range(BATCHES):
            torch.set_num_threads(1 + batch % 2)
            chunks = walk.next_batch()
            for slot, logits in walk.reader.read(chunks).items():
                expected = walk.advance(slot, len(chunks[slot]))
                assert torch.equal(logits, expected), f"seed {seed}, batch {batch}, slot {slot}"
    finally:
        torch.set_num_threads(threads)
