"""Evaluate exported demo models: held-out bits per byte, a character 5-gram baseline, recall, and samples.

Usage: ``python scripts/demo/evaluate.py --data DIR models/demo/gla ...`` writes ``results.json`` beside the
checkpoint folders. The bf16 weights of the checkpoint are what is evaluated, computed in fp32.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import recall
import torch
import torch.nn.functional as F
from corpus import DOCUMENT_END
from networks import LanguageModel
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

RECALL_SEED = 90_001
LISTS_PER_COUNT = 100
FACT_COUNTS = (2, 4, 8, 16)
PROMPTS = ("In the beginning", "HAMLET\n", "It was a fine morning, and Emma")


class CharacterModel:
    """Interpolated character n-gram model with Witten-Bell smoothing (Witten and Bell, 1991).

    ``P(c|h) = (N(hc) + U(h) P(c|h')) / (N(h) + U(h))``, where U(h) counts the different characters seen after
    h and h' is h without its first character; below the single character the distribution is uniform over the
    characters of the training text.
    """

    def __init__(self, documents: list[str], order: int = 5) -> None:
        self.order = order
        self.counts: list[dict[str, Counter[str]]] = []
        for length in range(order):
            grams: Counter[str] = Counter()
            for text in documents:
                grams.update(text[i : i + length + 1] for i in range(len(text) - length))
            table: dict[str, Counter[str]] = defaultdict(Counter)
            for gram, count in grams.items():
                table[gram[:-1]][gram[-1]] = count
            self.counts.append(table)
        self.totals = [{history: sum(c.values()) for history, c in table.items()} for table in self.counts]
        self.alphabet = len(self.counts[0][""])

    def probability(self, history: str, character: str) -> float:
        value = 1.0 / self.alphabet
        for length in range(min(len(history), self.order - 1) + 1):
            suffix = history[len(history) - length :]
            seen = self.counts[length].get(suffix)
            if seen is None:
                break
            value = (seen[character] + len(seen) * value) / (self.totals[length][suffix] + len(seen))
        return value

    def bits_per_character(self, documents: list[str]) -> float:
        bits, count = 0.0, 0
        for text in documents:
            for at, character in enumerate(text):
                bits -= math.log2(self.probability(text[max(0, at - self.order + 1) : at], character))
            count += len(text)
        return bits / count


@dataclass
class Accuracy:
    """Right answers out of ``questions``; ``chance`` is guessing among the values of the list."""

    right: int = 0
    questions: int = 0
    chance: float = 0.0

    def row(self) -> dict[str, float | int]:
        return {
            "accuracy": round(self.right / self.questions, 3),
            "chance": round(self.chance / self.questions, 3),
            "questions": self.questions,
        }


class Checkpoint:
    """A checkpoint folder, loaded for evaluation in fp32."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = json.loads((folder / "config.json").read_text())
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.model = LanguageModel(self.config).eval()
        weights = load_file(folder / "model.safetensors")
        self.model.load_state_dict({name: value.float() for name, value in weights.items()})
        self.parameters = sum(value.numel() for value in weights.values())

    @torch.no_grad()
    def logits(self, ids: list[list[int]]) -> Tensor:
        """[rows, longest, vocabulary]; rows are padded at the end, which cannot reach earlier positions."""
        longest = max(map(len, ids))
        return self.model(torch.tensor([row + [0] * (longest - len(row)) for row in ids]))

    def bits_per_byte(self, documents: list[str], window: int = 1024) -> float:
        """Each document in windows from a zero state, the end token first; bits over bytes of the text."""
        rows = []
        for text in documents:
            ids = self.tokenizer.encode(text).ids
            rows += [[0, *ids[i : i + window]] for i in range(0, len(ids), window)]
        rows.sort(key=len)
        nats = 0.0
        for start in range(0, len(rows), 16):
            part = rows[start : start + 16]
            logits = self.logits([row[:-1] for row in part])
            for row, scores in zip(part, logits, strict=True):
                nats += F.cross_entropy(scores[: len(row) - 1], torch.tensor(row[1:]), reduction="sum").item()
        return nats / math.log(2) / sum(len(text.encode()) for text in documents)

    def answers(self, prompts: list[str], values: list[str]) -> list[bool]:
        """Whether greedy decoding after each prompt would write the value and then end it."""
        ids, spans = [], []
        for prompt, value in zip(prompts, values, strict=True):
            before, whole = self.tokenizer.encode(prompt).ids, self.tokenizer.encode(f"{prompt} {value}").ids
            if whole[: len(before)] != before:
                raise ValueError("the value changes how its prompt is tokenised")
            ids.append(whole)
            spans.append((len(before), len(whole)))
        best = self.logits(ids).argmax(-1).tolist()
        return [b[s - 1 : e - 1] == row[s:e] for b, row, (s, e) in zip(best, ids, spans, strict=True)]

    @torch.no_grad()
    def sample(self, prompt: str, count: int, seed: int, temperature: float = 0.7) -> str:
        """Plain sampling; the whole text is run again for each token, which is fine at this size."""
        generator = torch.Generator().manual_seed(seed)
        ids = self.tokenizer.encode(prompt).ids
        for _ in range(count):
            scores = self.model(torch.tensor([ids]))[0, -1] / temperature
            ids.append(int(torch.multinomial(scores.softmax(-1), 1, generator=generator)))
        return self.tokenizer.decode(ids)


def recall_table(checkpoint: Checkpoint, count: int, form: str) -> dict[str, float | int]:
    """Accuracy of the first answer of fresh lists of ``count`` facts, over all kinds of facts."""
    rng = random.Random(f"{RECALL_SEED} {count} {form}")
    result = Accuracy()
    lists = [
        recall.document(rng, recall.KINDS[i % len(recall.KINDS)], count, form, queries=1)
        for i in range(LISTS_PER_COUNT)
    ]
    for start in range(0, len(lists), 25):
        part = lists[start : start + 25]
        prompts = ["".join(item.pieces[: item.answers[0]]) for item in part]
        values = [item.pieces[item.answers[0]].strip() for item in part]
        result.right += sum(checkpoint.answers(prompts, values))
        result.questions += len(part)
        result.chance += sum(i.values.count(v) / len(i.values) for i, v in zip(part, values, strict=True))
    return result.row()


def evaluate(folder: Path, heldout: list[str]) -> dict[str, object]:
    """All figures of one checkpoint."""
    checkpoint = Checkpoint(folder)
    result: dict[str, object] = {
        "parameters": checkpoint.parameters,
        "model_bytes": (folder / "model.safetensors").stat().st_size,
        "folder_bytes": sum(p.stat().st_size for p in folder.iterdir() if p.name != "training.json"),
        "heldout_bits_per_byte": round(checkpoint.bits_per_byte(heldout), 4),
        "recall": {f: {str(n): recall_table(checkpoint, n, f) for n in FACT_COUNTS} for f in recall.FORMS},
        "samples": [checkpoint.sample(prompt, 60, seed) for seed, prompt in enumerate(PROMPTS)],
    }
    record = folder / "training.json"
    if record.exists():
        result["training"] = json.loads(record.read_text())
    return result


def show(name: str, result: dict) -> None:
    print(f"== {name}: {result['parameters']} parameters, {result['heldout_bits_per_byte']} bits per byte")
    for form, rows in result["recall"].items():
        print(f"{form:>7}: " + "  ".join(f"{n}: {r['accuracy']:.2f} ({r['chance']:.2f})" for n, r in rows.items()))
    for sample in result["samples"]:
        print(f"--- {sample}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="*", help="checkpoint folders")
    parser.add_argument("--data", type=Path, required=True, help="folder that corpus.py wrote")
    parser.add_argument("--results", type=Path, help="JSON file to update; default: print only")
    parser.add_argument("--baseline", action="store_true", help="compute the character 5-gram baseline too")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    heldout = [d for d in (arguments.data / "heldout.txt").read_text("ascii").split(DOCUMENT_END) if d]
    stored = arguments.results is not None and arguments.results.exists()
    results = json.loads(arguments.results.read_text()) if stored else {"models": {}}
    if arguments.baseline:
        documents = (arguments.data / "train.txt").read_text("ascii").split(DOCUMENT_END)
        bits = CharacterModel(documents).bits_per_character(heldout)
        results["heldout_bytes"] = sum(map(len, heldout))
        results["baseline_5gram_bits_per_byte"] = round(bits, 4)
        print(f"character 5-gram: {bits:.4f} bits per byte held out")
    for folder in arguments.folders:
        results["models"][folder.name] = evaluate(folder, heldout)
        show(folder.name, results["models"][folder.name])
    if arguments.results is not None:
        arguments.results.write_text(json.dumps(results, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
