"""A model that plays by the rules of the engine without computing anything: the seam for engine and HTTP tests."""

import threading
import time
from collections.abc import Callable

import torch

from ostinato.engine.engine import Engine
from ostinato.engine.info import ModelInfo
from ostinato.engine.runner import StepLogits
from ostinato.engine.sampler import Sampler
from ostinato.engine.scheduler import Scheduler
from ostinato.engine.service import Service
from ostinato.engine.snapshot_file import SnapshotFormat
from ostinato.engine.snapshot_header import Fingerprint
from ostinato.engine.state_pool import State
from ostinato.engine.text.tokenizer import Tokenizer
from ostinato.engine.types import StepPlan
from ostinato.models.base import StateSpec

VOCABULARY = 256
EOS = 0


def next_token(history: list[int]) -> int:
    """The most likely token after a history: never the end of text, different for different histories."""
    mixed = 7
    for token in history:
        mixed = (mixed * 31 + token + 1) % 1_000_003
    return 1 + mixed % (VOCABULARY - 1)


class ScriptedRunner:
    """Keeps the tokens that every slot has read as its state, and predicts from that state alone.

    So a slot that is mixed up, not cleared or read twice changes what is generated. `script` maps a history to the
    next token; `before_step` may sleep, wait or raise; `misuse` lists what the engine did wrong.
    """

    def __init__(
        self,
        script: Callable[[list[int]], int] = next_token,
        before_step: Callable[[StepPlan], None] | None = None,
        vocabulary: int = VOCABULARY,
    ) -> None:
        self.states: dict[int, list[int]] = {}
        self.misuse: list[str] = []
        self.steps = 0
        self._script = script
        self._before_step = before_step
        self._vocabulary = vocabulary

    def run(self, plan: StepPlan) -> StepLogits:
        self.steps += 1
        self._check(plan)
        if self._before_step is not None:
            self._before_step(plan)
        rows: list[torch.Tensor] = []
        spans = []
        for chunk in plan.chunks:
            start = len(rows)
            state = self.states.setdefault(chunk.sequence.slot, [])
            if len(state) != chunk.sequence.num_read:
                self.misuse.append(f"{chunk.sequence.id} has read {chunk.sequence.num_read}, its slot {len(state)}")
            for i, token in enumerate(chunk.sequence.unread_tokens(chunk.length)):
                state.append(token)
                if chunk.scores_prompt or ((chunk.samples or chunk.keeps or chunk.looks) and i == chunk.length - 1):
                    rows.append(self._logits(state))
            if not chunk.length and (chunk.samples or chunk.keeps):
                assert chunk.sequence.origin is not None
                assert chunk.sequence.origin.logits is not None
                rows.append(chunk.sequence.origin.logits)
            spans.append((start, len(rows)))
        return StepLogits(torch.stack(rows) if rows else torch.empty(0, self._vocabulary), tuple(spans))

    def clear(self, slot: int) -> None:
        self.states.pop(slot, None)

    def is_finite(self, slot: int) -> bool:
        return True  # tokens are

    def save(self, slot: int, num_read: int, logits: torch.Tensor | None = None) -> State:
        if len(self.states.get(slot, [])) != num_read:
            self.misuse.append(f"slot {slot} is saved as {num_read} tokens, it has {len(self.states.get(slot, []))}")
        return State({"history": torch.tensor(self.states.get(slot, []))}, num_read, logits)

    def load(self, slot: int, state: State) -> None:
        self.states[slot] = state.tensors["history"].tolist()

    def _logits(self, state: list[int]) -> torch.Tensor:
        """One clear favourite; the others fall off with their distance from it."""
        favourite = self._script(state)
        distance = (torch.arange(self._vocabulary) - favourite).abs().float()
        return -0.05 * distance - 2.0 * (distance > 0)

    def _check(self, plan: StepPlan) -> None:
        slots = [chunk.sequence.slot for chunk in plan.chunks]
        if len(set(slots)) != len(slots) or min(slots, default=0) < 0:
            self.misuse.append(f"slots {slots} are not distinct")


class Gate:
    """A `before_step` that holds the engine until it is opened, so that tests decide when steps happen."""

    def __init__(self) -> None:
        self._open = threading.Event()

    def __call__(self, plan: StepPlan) -> None:
        if plan.chunks[0].sequence.id.startswith("warm-up"):
            return
        if not self._open.wait(timeout=30):
            raise TimeoutError("the gate was never opened")

    def open(self) -> None:
        self._open.set()


def slow(seconds: float) -> Callable[[StepPlan], None]:
    """A `before_step` that takes its time."""
    return lambda plan: time.sleep(seconds)


def scripted_engine(
    runner: ScriptedRunner, *, slots: int = 4, max_step_tokens: int = 16, max_queue: int = 8, encoder_length: int = 0
) -> Engine:
    eos = frozenset({EOS})
    return Engine(Scheduler(slots, max_step_tokens, max_queue, encoder_length), runner, Sampler(eos), eos)


def scripted_service(
    runner: ScriptedRunner | None = None,
    tokenizer: Tokenizer | None = None,
    *,
    slots: int = 4,
    max_step_tokens: int = 16,
    max_queue: int = 8,
    vocabulary: int = VOCABULARY,
) -> Service:
    """A service around a scripted runner, not started yet."""
    runner = runner or ScriptedRunner(vocabulary=vocabulary)
    engine = scripted_engine(runner, slots=slots, max_step_tokens=max_step_tokens, max_queue=max_queue)
    info = ModelInfo(
        model="scripted",
        architecture="Scripted",
        family="Scripted",
        vocab_size=vocabulary,
        dtype="float32",
        state_dtype="float32",
        bytes_per_state=1024,
        slots=slots,
        weight_bytes=0,
        matmul_params=0,
        head_params=0,
        batch_invariant=True,
        attention_window=None,
        eos_token_ids=frozenset({EOS}),
    )
    return Service(engine, info, tokenizer)


def scripted_snapshots() -> SnapshotFormat:
    """The format of a model without state."""
    own = Fingerprint(weights="0" * 64, config="0" * 64, tokenizer=None, dtype="float32", state_dtype="float32")
    return SnapshotFormat(own, StateSpec(()), VOCABULARY)
