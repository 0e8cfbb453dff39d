"""How fast the engine reads prompts and generates, without HTTP, and what share of the machine's roofline that is.

What is timed are whole steps as they are served: schedule, run, sample, commit. Prompts are random token ids.

- Prefill: `batch` prompts are read and nothing is generated, in steps of at most the engine's token budget.
- Decode: once all of `batch` prompts are read, `new_tokens` steps, in each of which every sequence gets a token.

The least time for a step comes from `ostinato.kernels.roofline`, whose rates are measured in the same run:

    weight bytes   of all projections in their dtype, once for a step; of the output projection only if logits are asked
                   for. On AMX they are kept in three quarters of that (`kernels/cpu/coded_weight.h`): a fraction of 1
                   can be exceeded there
    FLOP           2 * elements of the projections, for each token; of the output projection for each row of logits
    state bytes    each tensor of the StateSpec, read once and written once, for each sequence in the step

Left out is what is small: the embedding's rows, norms, convolutions, the arithmetic of the recurrence, the sampler. It
makes the bound a little too fast.
"""

import random
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from ostinato.engine.errors import StepError
from ostinato.engine.events import TokenEvent
from ostinato.engine.info import ModelInfo
from ostinato.engine.loading import LoadedEngine
from ostinato.engine.sampling_params import SamplingParams
from ostinato.engine.types import Sequence
from ostinato.kernels.dispatch import wait_for
from ostinato.kernels.roofline import Rates, Work, measure_rates

READ_ONLY = SamplingParams(temperature=0.0, max_tokens=0)
WITHOUT_END = SamplingParams(temperature=0.0, max_tokens=2**31, ignore_eos=True)

BenchProgress = Callable[[str, int, int], None]  # what is measured, repeats done, repeats in all


def no_progress(_what: str, _done: int, _total: int) -> None:
    """Reports nothing."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is run: for each batch size so many sequences, each with a prompt of so many tokens.

    Raises:
        ValueError: a number is below one.
    """

    batches: tuple[int, ...]
    prompt_tokens: int
    new_tokens: int
    repeats: int = 3

    def __post_init__(self) -> None:
        if not self.batches or min(*self.batches, self.prompt_tokens, self.new_tokens, self.repeats) < 1:
            raise ValueError(f"a load needs at least one of everything, got {self}")


@dataclass(frozen=True, slots=True)
class Step:
    """The shape of a step: tokens read, sequences they belong to, rows of logits asked for."""

    tokens: int
    sequences: int
    logits: int


@dataclass(frozen=True, slots=True)
class Timing:
    """Steps run one after the other, and how many seconds they took together."""

    steps: tuple[Step, ...]
    seconds: float

    @classmethod
    def median(cls, repeats: list["Timing"]) -> "Timing":
        """Of repeats of the same steps."""
        (steps,) = {repeat.steps for repeat in repeats}
        return cls(steps, statistics.median(repeat.seconds for repeat in repeats))


@dataclass(frozen=True, slots=True)
class BatchTimes:
    """What was measured at one batch size: the medians of all repeats."""

    batch: int
    prefill: Timing
    decode: Timing


class OfflineBench:
    """Runs loads on an engine that nobody else uses, with at least as many slots as the largest batch."""

    def __init__(self, loaded: LoadedEngine, device: torch.device) -> None:
        self._engine = loaded.engine
        self._vocab_size = loaded.info.vocab_size
        self._device = device

    def measure(self, batch: int, load: Load, report: BenchProgress) -> BatchTimes:
        """One of the load's batch sizes; one repeat before the others does not count. Raises StepError."""
        prefills, decodes = [], []
        for repeat in range(load.repeats + 1):
            report(f"batch {batch}", repeat, load.repeats + 1)
            prompts = self._prompts(batch, load.prompt_tokens, seed=repeat)
            prefills.append(self.read_prompts(prompts))
            decodes.append(self.generate(prompts, load.new_tokens))
        report(f"batch {batch}", load.repeats + 1, load.repeats + 1)
        return BatchTimes(batch, Timing.median(prefills[1:]), Timing.median(decodes[1:]))

    def _prompts(self, batch: int, length: int, seed: int) -> list[tuple[int, ...]]:
        draw = random.Random(seed)
        return [tuple(draw.choices(range(self._vocab_size), k=length)) for _ in range(batch)]

    def read_prompts(self, prompts: list[tuple[int, ...]]) -> Timing:
        """Reads the prompts and generates nothing."""
        sequences = self._add(prompts, READ_ONLY)
        return self._timed(sequences, lambda: self._engine.has_work)

    def generate(self, prompts: list[tuple[int, ...]], new_tokens: int) -> Timing:
        """Reads the prompts, which is not timed, and then times `new_tokens` steps of all sequences."""
        sequences = self._add(prompts, WITHOUT_END)
        while any(sequence.in_prefill for sequence in sequences):
            _check(self._engine.step())
        left = iter(range(new_tokens))
        timing = self._timed(sequences, lambda: next(left, None) is not None)
        for sequence in sequences:
            self._engine.abort(sequence)
        return timing

    def _add(self, prompts: list[tuple[int, ...]], params: SamplingParams) -> list[Sequence]:
        sequences = [Sequence(f"bench-{i}", prompt, params, seed=i) for i, prompt in enumerate(prompts)]
        self._engine.add(sequences)
        return sequences

    def _timed(self, sequences: list[Sequence], more: Callable[[], bool]) -> Timing:
        """Steps while there is `more` to do."""
        steps, read = [], _tokens_read(sequences)
        wait_for(self._device)
        start = time.perf_counter()
        while more():
            events = _check(self._engine.step())
            before, read = read, _tokens_read(sequences)
            steps.append(Step(read - before, len(events), sum(len(event.token_ids) for event in events)))
        wait_for(self._device)
        return Timing(tuple(steps), time.perf_counter() - start)


def _tokens_read(sequences: list[Sequence]) -> int:
    return sum(sequence.num_read for sequence in sequences)


def _check(events: list[TokenEvent]) -> list[TokenEvent]:
    for event in events:
        if event.error is not None:
            raise StepError(f"{event.sequence_id} failed: {event.error}")
    return events


def work_of(step: Step, info: ModelInfo) -> Work:
    """What counts of a step (see above)."""
    head = info.head_params if step.logits else 0
    return Work(
        weight_bytes=(info.matmul_params + head) * getattr(torch, info.dtype).itemsize,
        flop=2 * (info.matmul_params * step.tokens + info.head_params * step.logits),
        state_bytes=2 * info.bytes_per_state * step.sequences,
    )


def least_seconds(steps: Iterable[Step], info: ModelInfo, rates: Rates) -> float:
    """The time that the roofline allows for steps run one after the other."""
    return sum(rates.seconds(work_of(step, info)) for step in steps)


@dataclass(frozen=True, slots=True)
class OfflineRow:
    """One batch size. A fraction of 1 is the roofline itself. Rates as in `ostinato.kernels.roofline.Rates`."""

    batch: int
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    prefill_roofline_fraction: float
    decode_roofline_fraction: float
    prefill_seconds: float  # to read all prompts
    decode_seconds: float  # for new_tokens steps
    prompt_tokens: int  # of each sequence
    new_tokens: int
    repeats: int
    dtype: str
    device: str
    threads: int
    weight_bytes_per_decode_step: int
    state_bytes_per_decode_step: int
    read_bytes_per_second: float
    copy_bytes_per_second: float
    product_flop_per_second: float


def row_of(times: BatchTimes, load: Load, info: ModelInfo, rates: Rates, device: str) -> OfflineRow:
    """What is told about one batch size."""
    decode_step = work_of(times.decode.steps[0], info)
    prefill, decode = times.prefill, times.decode
    return OfflineRow(
        batch=times.batch,
        prefill_tokens_per_second=times.batch * load.prompt_tokens / prefill.seconds,
        decode_tokens_per_second=times.batch * load.new_tokens / decode.seconds,
        prefill_roofline_fraction=least_seconds(prefill.steps, info, rates) / prefill.seconds,
        decode_roofline_fraction=least_seconds(decode.steps, info, rates) / decode.seconds,
        prefill_seconds=prefill.seconds,
        decode_seconds=decode.seconds,
        prompt_tokens=load.prompt_tokens,
        new_tokens=load.new_tokens,
        repeats=load.repeats,
        dtype=info.dtype,
        device=device,
        threads=torch.get_num_threads(),
        weight_bytes_per_decode_step=decode_step.weight_bytes,
        state_bytes_per_decode_step=decode_step.state_bytes,
        read_bytes_per_second=rates.read,
        copy_bytes_per_second=rates.copy,
        product_flop_per_second=rates.product,
    )


def bench_offline(
    loaded: LoadedEngine, load: Load, device: str, progress: BenchProgress = no_progress
) -> list[OfflineRow]:
    """One row for each batch size. The machine's rates are measured before and after each, and their mean counts: what
    else runs on the machine changes from minute to minute, and should not count for or against the engine.

    Raises:
        StepError: a sequence failed.
    """
    place, dtype = torch.device(device), getattr(torch, loaded.info.dtype)
    bench, rows = OfflineBench(loaded, place), []
    progress("machine", 0, 1)
    after = measure_rates(place, dtype)
    for batch in load.batches:
        before, times = after, bench.measure(batch, load, progress)
        progress("machine", 0, 1)
        after = measure_rates(place, dtype)
        rows.append(row_of(times, load, loaded.info, before.mean(after), device))
    progress("machine", 1, 1)
    return rows
