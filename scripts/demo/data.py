"""Tokenizer and training batches: windows of the books beside rows of packed recall documents."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import recall
import torch
from configs import VOCABULARY
from corpus import DOCUMENT_END
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor

RECALL_SEED = 1
# The lists are random, hence noise to the loss; the answers are what there is to learn.
ANSWER_WEIGHT, LIST_WEIGHT = 6.0, 0.1


def build_tokenizer(text: Path) -> Tokenizer:
    """Train the byte-level BPE on the training text and a sample of recall documents."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[DOCUMENT_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    books = text.read_text("ascii").split(DOCUMENT_END)
    samples = [item.text for item in recall.training_documents(RECALL_SEED)]
    tokenizer.train_from_iterator(books + samples, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json``."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "bos_token": DOCUMENT_END,
        "clean_up_tokenization_spaces": False,
        "eos_token": DOCUMENT_END,
        "model_max_length": 1_000_000_000,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": DOCUMENT_END,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def encode_recall(tokenizer: Tokenizer, items: list[recall.Recall]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of the documents, each followed by the end token, and which tokens belong to answers."""
    ids: list[int] = []
    marks: list[bool] = []
    for item, encoding in zip(items, tokenizer.encode_batch([i.text for i in items]), strict=True):
        starts = np.cumsum([0, *map(len, item.pieces)])
        answer = np.zeros(starts[-1] + 1, dtype=bool)
        for index in item.answers:
            answer[starts[index] : starts[index + 1]] = True
        ids += [*encoding.ids, 0]
        marks += [*(bool(answer[start]) for start, _ in encoding.offsets), False]
    return np.array(ids, dtype=np.uint16), np.array(marks)


@dataclass
class Tokens:
    """Everything a run reads: book ids, recall ids and their answer marks, and the tokenizer."""

    tokenizer: Tokenizer
    books: np.ndarray
    recall: np.ndarray
    answers: np.ndarray


def prepare(folder: Path) -> Tokens:
    """Load the tokens of ``folder/train.txt``; made and kept there at the first call."""
    stored, vocabulary = folder / "tokens.npz", folder / "tokenizer.json"
    if not stored.exists():
        if not vocabulary.exists():
            build_tokenizer(folder / "train.txt").save(str(vocabulary))
        tokenizer = Tokenizer.from_file(str(vocabulary))
        documents = (folder / "train.txt").read_text("ascii").split(DOCUMENT_END)
        books = [i for encoding in tokenizer.encode_batch(documents) for i in (*encoding.ids, 0)]
        ids, marks = encode_recall(tokenizer, recall.training_documents(RECALL_SEED))
        np.savez(stored, books=np.array(books, dtype=np.uint16), recall=ids, answers=marks)
    arrays = np.load(stored)
    tokenizer = Tokenizer.from_file(str(vocabulary))
    return Tokens(tokenizer, arrays["books"], arrays["recall"], arrays["answers"])


class Batches:
    """Source of (inputs, targets, weights), each [rows, length]; the last rows are recall text.

    Book windows start anywhere. A recall row begins with the first document that the row before it did not
    hold as a whole, so no question is separated from its list; the rows go round when the documents run out.
    """

    def __init__(self, tokens: Tokens, rows: int, length: int, seed: int) -> None:
        self.tokens, self.rows, self.length = tokens, rows, length
        self.rng = np.random.default_rng(seed)
        self.weights = np.where(tokens.answers, ANSWER_WEIGHT, LIST_WEIGHT).astype(np.float32)
        self.starts = np.concatenate([[0], np.flatnonzero(tokens.recall == 0) + 1])
        self.at = 0

    def next(self, recall_rows: int) -> tuple[Tensor, Tensor, Tensor]:
        ids = np.empty((self.rows, self.length + 1), dtype=np.int64)
        weight = np.ones((self.rows, self.length), dtype=np.float32)
        books = self.rows - recall_rows
        for row, start in enumerate(self.rng.integers(0, len(self.tokens.books) - self.length - 1, books)):
            ids[row] = self.tokens.books[start : start + self.length + 1]
        for row in range(books, self.rows):
            ids[row], weight[row] = self.recall_row()
        batch = torch.from_numpy(ids)
        return batch[:, :-1].contiguous(), batch[:, 1:].contiguous(), torch.from_numpy(weight)

    def recall_row(self) -> tuple[np.ndarray, np.ndarray]:
        if self.at + self.length + 1 > len(self.tokens.recall):
            self.at = 0
        begin, end = self.at, self.at + self.length
        following = int(self.starts[np.searchsorted(self.starts, end, side="right") - 1])
        self.at = following if following > begin else end
        return self.tokens.recall[begin : end + 1], self.weights[begin + 1 : end + 1]
