"""What a treated recurrence computes, against the formula in fp64: outputs, states and sums of decays."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from ostinato.kernels.packed import Packed
from ostinato.kernels.recurrence import recurrence
from ostinato.kernels.treatment import Treatment

HEADS, GROUPS, KEY, VALUE, TOKENS = 4, 2, 5, 3, 17


@dataclass
class Case:
    """Operands of one form, and its decays [T, H, K] and step sizes [T, H] in fp64."""

    given: dict[str, Tensor]
    log_decay: Tensor
    step: Tensor = field(default_factory=lambda: torch.ones(TOKENS, HEADS, dtype=torch.float64))


def case_of(form: str, draw: torch.Generator) -> Case:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    if form == "bonus":  # RWKV-5 and RWKV-6
        log_decay = -normal(TOKENS, HEADS, KEY).exp()
        return Case({"log_decay": log_decay, "bonus": normal(HEADS, KEY)}, log_decay.double())
    if form == "scalar":  # RetNet
        log_decay = -normal(TOKENS, HEADS).exp()
        return Case({"log_decay": log_decay}, log_decay.double().unsqueeze(-1))
    if form == "groups":  # GLA with shared keys
        log_decay = -normal(TOKENS, GROUPS, KEY).exp()
        return Case({"log_decay": log_decay}, log_decay.double().repeat_interleave(HEADS // GROUPS, dim=1))
    rate, step, bias = -normal(HEADS).exp(), normal(TOKENS, HEADS), normal(HEADS)  # Mamba-2
    given = {"rate": rate, "step": step, "step_bias": bias, "skip": normal(HEADS)}
    size = torch.log1p((step + bias).double().exp())
    return Case(given, (size * rate.double()).unsqueeze(-1), size)


@pytest.mark.parametrize("treatment", [Treatment(0.9, 0.7), Treatment(0.95), Treatment(remember=0.5), Treatment()])
@pytest.mark.parametrize("form", ["bonus", "scalar", "groups", "steps"])
@pytest.mark.parametrize("seed", [0, 1])
def test_outputs_and_states_are_the_formula(form: str, treatment: Treatment, seed: int) -> None:
    """A token's own bonus and skip are not treated: they do not pass through the state."""
    draw = torch.Generator().manual_seed(seed)
    case = case_of(form, draw)
    q, k = (torch.randn(TOKENS, GROUPS, KEY, generator=draw) for _ in range(2))
    v = torch.randn(TOKENS, HEADS, VALUE, generator=draw)
    state, sums = torch.randn(2, HEADS, VALUE, KEY, generator=draw), torch.zeros(2, HEADS, KEY)
    treatment = Treatment(treatment.forget, treatment.remember, {state.data_ptr(): sums})
    wanted, s = [], state[1].double()
    keys, queries = (x.double().repeat_interleave(HEADS // GROUPS, dim=1) for x in (k, q))
    for t in range(TOKENS):
        entering = case.step[t].view(-1, 1, 1) * v[t].double().unsqueeze(-1) * keys[t].unsqueeze(-2)
        before, s = s, treatment.forget * case.log_decay[t].exp().unsqueeze(-2) * s + treatment.remember * entering
        read = s
        if "bonus" in case.given:
            read = before + entering * case.given["bonus"].double().unsqueeze(-2)
        y = (read * queries[t].unsqueeze(-2)).sum(-1)
        if "skip" in case.given:
            y = y + case.given["skip"].double().unsqueeze(-1) * v[t].double()
        wanted.append(y)
    found = recurrence(q, k, v, state, Packed.of([1], [TOKENS], treatment=treatment), **case.given)
    assert torch.allclose(found.double(), torch.stack(wanted), rtol=1e-5, atol=1e-5)
    assert torch.allclose(state[1].double(), s, rtol=1e-5, atol=1e-5)
    total = (case.log_decay + torch.tensor(treatment.forget, dtype=torch.float64).log()).sum(0)
    assert torch.allclose(sums[1].double(), total.expand(HEADS, KEY), rtol=1e-5)
    assert not sums[0].any()


@pytest.mark.parametrize("given", [{}, {"beta": torch.ones(1, HEADS)}, {"a": torch.ones(1, HEADS, KEY)}])
def test_other_recurrences_are_refused(given: dict[str, Tensor]) -> None:
    q, v = torch.ones(1, HEADS, KEY), torch.ones(1, HEADS, VALUE)
    if "a" in given:
        given = {**given, "b": given["a"]}
    with pytest.raises(ValueError, match="only a weighted sum can be treated"):
        recurrence(q, q, v, torch.zeros(1, HEADS, VALUE, KEY), Packed.of([0], [1], treatment=Treatment(0.9)), **given)
