"""Whether the kernels are right where they run: every case of `cases.py`, in several ways.

The same checks run in Triton's interpreter on CPU tensors, at small sizes, so that they are tested without a GPU.

- reference: outputs and pools against the reference implementation, with forks, padding and empty sequences. Slots that
  no sequence reads hold NaN, and slots that none writes keep their bits.
- steps: one token of every sequence at a time gives what all at once give.
- invariant: in batch-invariant mode every sequence alone, in two pieces, gives the same bits.
- replay: a step that was captured as a graph, and is replayed, gives the bits of the step itself.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ostinato.kernels.gpu import OPERATORS
from ostinato.kernels.gpu.calls import Call, Function
from ostinato.kernels.gpu.mode import set_to

Capture = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""Runs a function, and returns what runs it again: on the same memory, into the same output."""


def launch(call: Call) -> Tensor:
    """Runs the kernel of the call's operator, whatever device its tensors are on."""
    launcher: Function = OPERATORS[call.operator]
    return call.run(launcher)


class Failed(Exception):
    """What a check found to be wrong, where that is no question of accuracy."""


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference over that of what is expected."""
    scale = expected.double().norm().clamp(min=1e-30)
    return float((found.double() - expected.double()).norm() / scale)


def reference(call: Call) -> float:
    """The worst error of outputs and written slots. Both run on the same pools, poisoned where nothing may be read."""
    ours = _with_poisoned_pools(call)
    before, theirs = ours.with_own_pools().pools, ours.with_own_pools()
    errors = [relative_error(launch(ours), theirs.run(call.reference))]
    written = call.batch.dst[call.batch.dst >= 0].long()
    for name, pool in ours.pools.items():
        errors.append(_pool_error(pool[written], theirs.pools[name][written]))
        others = [slot for slot in range(pool.shape[0]) if slot not in written.tolist()]
        if not _same_bits(pool[others], before[name][others]):
            raise Failed(f"{name} changed in slots that no sequence writes")
    return max(errors, key=_nan_is_worst)


def _pool_error(found: Tensor, expected: Tensor) -> float:
    """As `relative_error`. What a slot held and nothing replaced (a ring that is not full) may be NaN, in both."""
    if not torch.equal(found.isnan(), expected.isnan()):
        return math.nan
    return relative_error(found.nan_to_num(), expected.nan_to_num())


def _nan_is_worst(error: float) -> float:
    return math.inf if math.isnan(error) else error


def _with_poisoned_pools(call: Call) -> Call:
    """NaN in every slot that no sequence reads."""
    call = call.with_own_pools()
    read = call.batch.src.tolist()
    for pool in call.pools.values():
        pool[[slot for slot in range(pool.shape[0]) if slot not in read]] = math.nan
    return call


def _same_bits(left: Tensor, right: Tensor) -> bool:
    """NaN equals NaN."""
    return torch.equal(left.contiguous().view(torch.uint8), right.contiguous().view(torch.uint8))


def steps(call: Call) -> float:
    """One token of all sequences that have one more, at a time."""
    whole, stepped = call.with_own_pools(), call.with_own_pools()
    expected = launch(whole)
    found = torch.full_like(expected, math.nan)
    starts, lengths = call.batch.starts.tolist(), call.lengths
    for t in range(call.batch.longest):
        active = [i for i, length in enumerate(lengths) if length > t]
        rows = torch.tensor([starts[i] + t for i in active], device=found.device)
        step = stepped.part(rows, active, [1] * len(active), read=t, source="dst" if t else "src")
        found[rows] = launch(step)
    errors = [relative_error(found, expected)]
    written = call.batch.dst[call.batch.starts.diff() > 0].long()
    errors += [relative_error(stepped.pools[name][written], pool[written]) for name, pool in whole.pools.items()]
    return max(errors, key=_nan_is_worst)


def invariant(call: Call) -> float:
    """In batch-invariant mode: every sequence by itself, in two pieces, bit for bit."""
    whole, alone = call.with_own_pools(), call.with_own_pools()
    starts = call.batch.starts.tolist()
    with set_to(True):
        expected = launch(whole)
        for i, length in enumerate(call.lengths):
            cut = (length + 1) // 2
            for first, last, source in ((0, cut, "src"), (cut, length, "dst")):
                rows = torch.arange(starts[i] + first, starts[i] + last, device=expected.device)
                piece = alone.part(rows, [i], [last - first], read=first, source=source)
                if not _same_bits(launch(piece), expected[rows]):
                    raise Failed(f"tokens {first} to {last} of a sequence of {length} have other bits alone")
    written = call.batch.dst.long()
    for name, pool in whole.pools.items():
        if not _same_bits(alone.pools[name][written], pool[written]):
            raise Failed(f"{name} has other bits when the sequences are alone")
    return 0.0


def replay(call: Call, capture: Capture) -> float:
    """Bit for bit. A graph is captured while the step runs on pools that are put back before it is replayed."""
    eager, static = call.with_own_pools(), call.with_own_pools()
    expected = launch(eager)
    again = capture(lambda: launch(static))
    for name, pool in static.pools.items():
        pool.copy_(call.pools[name])
    if not _same_bits(again(), expected):
        raise Failed("the replayed step has other bits")
    for name, pool in eager.pools.items():
        if not _same_bits(static.pools[name], pool):
            raise Failed(f"{name} has other bits after the replayed step")
    return 0.0
