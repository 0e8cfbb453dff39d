"""Reading other than the model was trained: the recurrence forgets more, remembers less, or its decays are added up.

    S' = (forget D) * S + v (remember k)^T

It is for recurrences that are weighted sums, without a delta term; decays are treated only where they are the same for
all of V, which Mamba's are not. What a token reads of itself without its state (a bonus, a skip) stays as it is.

Source: Chen et al. 2024 (Stuffed Mamba, arXiv 2410.07145): a <- 0.9999 a and B <- 0.75 B; and the state of a window as
the difference of two states, for which the product of the decays between them is needed. It is kept as a sum of
logarithms, which does not underflow.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ostinato.kernels import rows
from ostinato.kernels.diagonal import diagonal
from ostinato.kernels.packed import Packed


@dataclass(frozen=True, slots=True, eq=False)
class Treatment:
    """How all sequences of one forward pass are read.

    forget: factor of every decay, in (0, 1]. remember: factor of what enters the state. sums: by the address of a
    layer's states, the sums of the logarithms of its decays: [slots, H, K] fp32, advanced in place.
    """

    forget: float = 1.0
    remember: float = 1.0
    sums: Mapping[int, Tensor] = field(default_factory=dict)

    @property
    def changes(self) -> bool:
        """Whether it changes what is computed."""
        return self.forget != 1.0 or self.remember != 1.0


def treated(
    k: Tensor, state: Tensor, batch: Packed, given: dict[str, Tensor], treatment: Treatment
) -> tuple[Tensor, dict[str, Tensor]]:
    """k and the optional operands of a recurrence as `treatment` changes them. Adds its decays to the sums.

    A treatment that changes nothing returns the operands as they are. Raises ValueError: not such a recurrence.
    """
    matrix = "rate" in given and given["rate"].dim() > 1
    decays = treatment.forget != 1.0 or state.data_ptr() in treatment.sums
    if given.keys() & {"a", "beta"} or not given.keys() & {"rate", "log_decay"} or (matrix and decays):
        raise ValueError("only a weighted sum can be treated, and its decays only where all of V shares them")
    if matrix:
        return k.float() * treatment.remember, given
    heads, width = state.shape[1], state.shape[3]
    step = _step(given)
    log_decay = given["log_decay"].float() if step is None else step * given["rate"]
    if treatment.forget != 1.0:
        log_decay = log_decay + math.log(treatment.forget)
    sums = treatment.sums.get(state.data_ptr())
    if sums is not None:
        _add_up(_per_key(log_decay, heads, width), sums, batch)
    if not treatment.changes:
        return k, given
    k = k.float() * treatment.remember
    if step is not None:
        k = k.repeat_interleave(heads // k.shape[1], dim=1) * step.unsqueeze(-1)
    changed = {name: x for name, x in given.items() if name not in ("rate", "step", "step_bias")}
    if "bonus" in given:
        changed["bonus"] = given["bonus"] / treatment.remember
    return k, changed | {"log_decay": log_decay}


def _step(given: dict[str, Tensor]) -> Tensor | None:
    """[T, H] fp32, or None where there are no step sizes."""
    if "step" not in given:
        return None
    step = given["step"].float()
    return rows.softplus(step + given["step_bias"]) if "step_bias" in given else step


def _per_key(log_decay: Tensor, heads: int, width: int) -> Tensor:
    """The same for every head and every element of K: [T, H K], contiguous."""
    groups = log_decay.view(*log_decay.shape[:2], -1).repeat_interleave(heads // log_decay.shape[1], dim=1)
    return groups.expand(-1, heads, width).flatten(1).contiguous()


def _add_up(log_decay: Tensor, sums: Tensor, batch: Packed) -> None:
    """Token after token, so that the sums are the same however a text is split: a recurrence that forgets nothing."""
    diagonal(log_decay, torch.zeros_like(log_decay), sums.flatten(1), batch)
