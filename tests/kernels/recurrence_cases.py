"""Random inputs of the recurrence, in every form that its family takes."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.kernels.packed import Packed
from ostinato.kernels.recurrence import recurrence, recurrence_ref
from tests.kernels.random_batches import SLOTS, spaced, uniform

# Decay, and what else acts on the state: every combination that the operator accepts.
FORMS = [
    *((decay, extra) for decay in ("none", "head", "key") for extra in ("none", "beta", "ab", "bonus")),
    *((decay, extra) for decay in ("rate", "matrix") for extra in ("none", "bonus")),
]
IDS = ["-".join(form) for form in FORMS]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PARAMETERS = ("rate", "step_bias", "bonus", "skip")


@dataclass(frozen=True)
class Case:
    """operands: [T, ...] each; parameters: the same for all tokens; state: the pool, [SLOTS, H, V, K]."""

    operands: dict[str, Tensor]
    parameters: dict[str, Tensor]
    state: Tensor
    normalize: bool
    scale: float

    def run(self, batch: Packed, state: Tensor) -> Tensor:
        """The operator as models call it, on `state`."""
        given = {**self.operands, **self.parameters}
        return recurrence(**given, state=state, batch=batch, normalize=self.normalize, scale=self.scale)

    def reference(self, batch: Packed, state: Tensor) -> Tensor:
        """The reference implementation on `state`."""
        where = {"src": batch.src, "dst": batch.dst, "starts": batch.starts, "longest": batch.longest}
        given = {**self.operands, **self.parameters, **where}
        return recurrence_ref(**given, state=state, normalize=self.normalize, scale=self.scale)

    def tokens(self, start: int, stop: int) -> "Case":
        return replace(self, operands={name: x[start:stop] for name, x in self.operands.items()})

    def at(self, rows: list[int]) -> "Case":
        """The tokens of these rows, in this order."""
        return replace(self, operands={name: x[torch.tensor(rows).long()] for name, x in self.operands.items()})


@dataclass
class Draw:
    """What random cases are made of."""

    generator: torch.Generator
    tokens: int
    heads: int
    rows: int
    width: int

    def pick(self, *choices: int) -> int:
        return choices[int(torch.randint(0, len(choices), (), generator=self.generator))]

    def groups(self) -> int:
        """Heads of one operand: a divisor of the state's."""
        return self.pick(*(g for g in range(1, self.heads + 1) if self.heads % g == 0))

    def uniform(self, *shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
        return uniform(self.generator, *shape, low=low, high=high)

    def operand(self, *shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
        return self.uniform(self.tokens, *shape, low=low, high=high)

    def unit(self, *shape: int) -> Tensor:
        return F.normalize(self.operand(*shape), dim=-1)


def random_case(
    form: tuple[str, str], tokens: int, generator: torch.Generator, *, state_dtype: torch.dtype = torch.float32
) -> Case:
    """Heads in groups, sizes that are mostly no powers of two, operands of any dtype and layout, all options."""
    heads, rows, width = (int(torch.randint(1, high, (), generator=generator)) for high in (7, 70, 90))
    draw = Draw(generator, tokens, heads, rows, width)
    operands = {
        "q": draw.operand(draw.groups(), width),
        "k": draw.unit(draw.groups(), width),
        "v": draw.operand(draw.groups(), rows),
        **_decay_operands(form[0], draw),
        **_extra_operands(form[1], draw),
    }
    if draw.pick(0, 1):
        operands["gate"] = draw.operand(heads, rows, low=-6.0, high=6.0)
    state = draw.uniform(SLOTS, heads, rows, width).to(state_dtype)
    laid_out = {name: _laid_out(x, draw) for name, x in operands.items()}
    return Case(laid_out, _parameters(form, draw), state, bool(draw.pick(0, 1)), (1.0, width**-0.5)[draw.pick(0, 1)])


def _decay_operands(decay: str, draw: Draw) -> dict[str, Tensor]:
    if decay == "head":
        return {"log_decay": _log_decay(draw, draw.groups())}
    if decay == "key":
        return {"log_decay": _log_decay(draw, draw.groups(), draw.width)}
    if decay == "rate":
        return {"step": draw.operand(draw.heads, low=0.0, high=2.0)}
    if decay == "matrix":
        return {"step": draw.operand(draw.heads, draw.rows, low=0.0, high=2.0)}
    return {}


def _log_decay(draw: Draw, *shape: int) -> Tensor:
    """From nearly 0, and 0, to nearly 1, and 1."""
    log_decay = F.logsigmoid(draw.operand(*shape, low=-12.0, high=12.0))
    kind = draw.operand(*shape, low=0.0)
    for bound, value in ((0.04, -torch.inf), (0.03, -1e4), (0.02, -100.0), (0.01, 0.0)):
        log_decay[kind < bound] = value
    return log_decay


def _extra_operands(extra: str, draw: Draw) -> dict[str, Tensor]:
    if extra == "beta":
        return {"beta": draw.operand(draw.groups(), low=0.0, high=2.0)}
    if extra == "ab":  # contracts, as RWKV-7's does
        groups = draw.groups()
        unit = draw.unit(groups, draw.width)
        return {"a": -unit, "b": unit * draw.operand(groups, draw.width, low=0.0)}
    return {}


def _parameters(form: tuple[str, str], draw: Draw) -> dict[str, Tensor]:
    heads, rows, width = draw.heads, draw.rows, draw.width
    parameters = {}
    if form[0] in ("rate", "matrix"):
        per_head = form[0] == "rate"
        parameters["rate"] = -draw.uniform(*((heads,) if per_head else (heads, rows, width)), low=1e-4, high=16.0)
        if draw.pick(0, 1):
            parameters["step_bias"] = draw.uniform(*((heads,) if per_head else (heads, rows)), low=-7.0, high=1.0)
    if form[1] == "bonus":
        parameters["bonus"] = draw.uniform(heads, width)
    if shape := draw.pick(0, 1, 2):
        parameters["skip"] = draw.uniform(*((heads,) if shape == 1 else (heads, rows)))
    return parameters


def _laid_out(x: Tensor, draw: Draw) -> Tensor:
    """In a random dtype; contiguous, a slice of longer rows, or one token's values for all."""
    x = x.to(DTYPES[draw.pick(0, 0, 1, 2)])
    match draw.pick(0, 1, 2, 3):
        case 0:
            return x
        case 3 if x.shape[0]:
            return x[:1].expand_as(x)
        case _:
            return spaced(x)
