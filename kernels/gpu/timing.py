"""How fast the kernels are where they run, beside what that GPU's memory can do.

A kernel is timed as it is served: inside a captured graph, so that Python is not timed. It runs over several copies of
its tensors, more than the caches hold, since between two steps of a layer all other layers have been read.
"""

import math
from dataclasses import dataclass

import torch

from ostinato.kernels.gpu.calls import Draw
from ostinato.kernels.gpu.cases import Case
from ostinato.kernels.gpu.checks import Capture, launch
from ostinato.kernels.packed import Packed
from ostinato.kernels.roofline import median_seconds

STEP_SEQUENCES = 32
SCAN_TOKENS = 2048
WORKING_SET = 2**29  # bytes
MOST_COPIES = 64


@dataclass(frozen=True, slots=True)
class Timing:
    """One kernel at a real model's sizes, bf16. fraction: of the copy bandwidth."""

    case: str
    shape: str
    microseconds: float
    bytes_per_second: float
    fraction: float


def time_case(case: Case, device: torch.device, copy_bandwidth: float, capture: Capture) -> list[Timing]:
    """A step of many sequences, and a scan of one."""
    step = Packed.of(range(STEP_SEQUENCES), [1] * STEP_SEQUENCES, device=device)
    scan = Packed.of([0], [SCAN_TOKENS], device=device)
    shapes = ((f"step of {STEP_SEQUENCES}", step), (f"scan of {SCAN_TOKENS}", scan))
    return [_time(case, shape, batch, device, copy_bandwidth, capture) for shape, batch in shapes]


def _time(
    case: Case, shape: str, batch: Packed, device: torch.device, copy_bandwidth: float, capture: Capture
) -> Timing:
    call = case.call(Draw.of(0, torch.bfloat16, device), batch, STEP_SEQUENCES, small=False)
    output = launch(call)
    moved = call.num_bytes + output.numel() * output.element_size()
    copies = [call.with_own_tensors() for _ in range(min(MOST_COPIES, math.ceil(WORKING_SET / moved)))]
    replay = capture(lambda: [launch(each) for each in copies][-1])
    seconds = median_seconds(replay, device) / len(copies)
    return Timing(case.name, shape, 1e6 * seconds, moved / seconds, moved / seconds / copy_bandwidth)
