"""Forgetting more, remembering less and the window, against the paper's formulas in fp64.

The inputs of a layer's recurrence (k, v and decays) are taken where the model calls the operator, and a state is
computed from them directly, as a sum over tokens: S = sum_i prod_{j > i} (forget D_j) v_i (remember k_i)^T.
Source: Chen et al. 2024 (Stuffed Mamba, arXiv 2410.07145).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from ostinato.engine.state_pool import StatePool
from ostinato.kernels import dispatch
from ostinato.kernels.dispatch import supported_dtypes
from ostinato.kernels.packed import Packed
from ostinato.kernels.treatment import Treatment
from ostinato.models.base import Model
from ostinato.models.mitigations import REMEDIES
from ostinato.models.recurrent_memory import window_spec
from ostinato.models.registry import load_model
from tests.models.test_contract import CHECKPOINTS, open_small, random_lengths, random_tokens

SLOTS, SLOT = 3, 1
WEIGHTED = [
    "GLAForCausalLM",
    "HGRN2ForCausalLM",
    "Mamba2ForCausalLM",
    "RWKV6ForCausalLM",
    "RetNetForCausalLM",
    "Rwkv5ForCausalLM",
    "Rwkv6ForCausalLM",
    "mamba2_ssm",
    "rwkv5.2_pth",
    "rwkv6_pth",
]
LENGTH, WINDOW = 48, 16


@dataclass(frozen=True)
class Inputs:
    """What one layer's recurrence was given, per head: log_decay [T, H, K], k [T, H, K], v [T, H, V], all fp64."""

    log_decay: Tensor
    k: Tensor
    v: Tensor

    def state(self, start: int, stop: int, forget: float = 1.0, remember: float = 1.0) -> Tensor:
        """Of these tokens alone: [H, V, K]."""
        log_decay = self.log_decay[start:stop] + torch.tensor(forget, dtype=torch.float64).log()
        later = log_decay.flip(0).cumsum(0).flip(0) - log_decay  # of the tokens after each
        return torch.einsum("thv,thk->hvk", self.v[start:stop], self.k[start:stop] * remember * later.exp())


class Spy:
    """Notes the operands of the recurrence, layer by layer. They are read again from the operator's definition."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.layers: list[dict[str, Tensor]] = []
        operators = dispatch.operators

        class Noting:
            def __init__(self, x: Tensor) -> None:
                self.real = operators(x)

            def __getattr__(self, name: str) -> object:
                return getattr(self.real, name)

        def noting(real: object) -> object:
            def recurrence(q: Tensor, k: Tensor, v: Tensor, state: Tensor, *rest: object, **given: Tensor) -> Tensor:
                self.layers.append({"k": k, "v": v, "state": state, **given})
                result: Tensor = real(q, k, v, state, *rest, **given)  # type: ignore[operator]  # torch leaves it untyped
                return result

            return recurrence

        def spied(x: Tensor) -> Noting:
            found = Noting(x)
            found.__dict__["recurrence"] = noting(found.real.recurrence)
            return found

        monkeypatch.setattr(dispatch, "operators", spied)

    def inputs(self, layer: int) -> Inputs:
        given = self.layers[layer]
        heads, width = given["state"].shape[1], given["state"].shape[3]

        def per_head(x: Tensor) -> Tensor:
            return x.double().repeat_interleave(heads // x.shape[1], dim=1)

        v = per_head(given["v"])
        if "rate" in given:
            step = given["step"].double()
            if "step_bias" in given:
                step = torch.log1p((step + given["step_bias"].double()).exp())
            v, log_decay = v * step.unsqueeze(-1), (step * given["rate"].double()).unsqueeze(-1)
        else:
            log_decay = per_head(given["log_decay"].view(*given["log_decay"].shape[:2], -1))
        return Inputs(log_decay.expand(-1, heads, width), per_head(given["k"]), v)


@pytest.fixture(params=WEIGHTED)
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    with torch.inference_mode():
        yield load_model(open_small(request.param), dtype=torch.float32)


def recurrent(model: Model, pool: StatePool) -> Tensor:
    """[layers, H, V, K] of the slot."""
    return next(pool.tensors[name] for name in ("recurrent", "ssm", "wkv") if name in pool.tensors)[:, SLOT]


def read(model: Model, pool: StatePool, tokens: list[int], treatment: Treatment) -> None:
    batch = Packed.of([SLOT], [len(tokens)], treatment=treatment)
    model.forward(torch.tensor(tokens), batch, pool.tensors)


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


def test_every_family_with_a_window_is_tested() -> None:
    claimed = {family for family, remedies in REMEDIES.items() if "window" in remedies}
    tested = {load_model(open_small(name)).family for name in WEIGHTED}
    assert tested == claimed
    assert set(WEIGHTED) <= CHECKPOINTS.keys()


def test_forgetting_more_and_remembering_less_is_the_formula(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operands are those that the operator gets: already treated."""
    forget, remember, tokens = 0.97, 0.75, random_tokens(model, LENGTH, seed=3)
    plain, treated = StatePool(model.state_spec, SLOTS), StatePool(model.state_spec, SLOTS)
    spy = Spy(monkeypatch)
    read(model, plain, tokens[:1], Treatment())
    layers = len(spy.layers)
    for pool, treatment in ((plain, Treatment()), (treated, Treatment(forget, remember))):
        pool.clear(SLOT)
        spy.layers.clear()
        read(model, pool, tokens, treatment)
        if pool is plain:
            first = spy.inputs(0)  # the first layer's inputs do not depend on what it remembers
    wanted = first.state(0, LENGTH, forget, remember)
    assert relative(recurrent(model, treated)[0], wanted) <= 1e-5
    assert relative(recurrent(model, plain)[0], wanted) > 1e-2
    assert layers == len(spy.layers)
    for layer in range(layers):
        assert relative(recurrent(model, treated)[layer], spy.inputs(layer).state(0, LENGTH)) <= 1e-5


@pytest.mark.parametrize("name", ["FalconMambaForCausalLM", "MambaForCausalLM", "mamba_ssm"])
def test_remembering_less_where_every_element_has_its_decay(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.inference_mode():
        model = load_model(open_small(name), dtype=torch.float32)
        pool, spy, remember = StatePool(model.state_spec, SLOTS), Spy(monkeypatch), 0.75
        read(model, pool, random_tokens(model, LENGTH, seed=5), Treatment(remember=remember))
        for layer, given in enumerate(spy.layers):
            step = torch.log1p((given["step"] + given["step_bias"]).double().exp())[:, 0]  # [T, V]
            state = torch.zeros(given["state"].shape[2:], dtype=torch.float64)
            for t in range(LENGTH):
                decay = torch.exp(step[t].unsqueeze(-1) * given["rate"][0].double())
                state = decay * state + torch.outer(step[t] * given["v"][t, 0].double(), given["k"][t, 0].double())
            assert relative(pool.tensors["ssm"][layer, SLOT], state) <= 1e-5
        with pytest.raises(ValueError, match="only where all of V shares them"):
            read(model, pool, [1], Treatment(forget=0.9))
        entered = [given["k"].clone() for given in spy.layers[:1]]
        spy.layers.clear()
        pool.clear(SLOT)
        read(model, pool, random_tokens(model, LENGTH, seed=5), Treatment())
        assert torch.equal(entered[0], spy.layers[0]["k"] * remember)


@pytest.mark.parametrize("forget", [1.0, 0.99])
def test_a_window_is_the_state_of_its_tokens_alone(
    model: Model, forget: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a boundary of the last `WINDOW` tokens, and between two of those since the boundary before the last."""
    window = window_spec(model.family, model.state_spec)
    pool, tokens = StatePool(model.state_spec, SLOTS, window=window), random_tokens(model, LENGTH + 5, seed=4)
    treatment, spy = Treatment(forget, 1.0, pool.sums_of_decays()), Spy(monkeypatch)
    pool.begin_window(SLOT)
    pieces: list[list[Inputs]] = []
    worst = 0.0
    for start in range(0, len(tokens), WINDOW):
        spy.layers.clear()
        read(model, pool, tokens[start : start + WINDOW], treatment)
        pieces.append([spy.inputs(layer) for layer in range(len(spy.layers))])
        if len(tokens[start : start + WINDOW]) == WINDOW:
            pool.cut_window(SLOT)
            held = pieces[-1:]
        else:
            held = pieces[-2:]
        for layer, state in enumerate(recurrent(model, pool)):
            parts = [piece[layer] for piece in held]
            whole = Inputs(*(torch.cat([getattr(part, name) for part in parts]) for name in ("log_decay", "k", "v")))
            worst = max(worst, relative(state, whole.state(0, len(whole.k))))
    assert worst <= 1e-4, worst
    everything = StatePool(model.state_spec, SLOTS)
    read(model, everything, tokens, Treatment(forget))
    assert relative(recurrent(model, everything), recurrent(model, pool).double()) > 1e-2  # there is something to cut


@pytest.mark.skipif(torch.bfloat16 not in supported_dtypes(torch.device("cpu")), reason="no bf16 on this CPU")
@pytest.mark.parametrize("name", ["GLAForCausalLM", "Mamba2ForCausalLM", "MambaForCausalLM", "Rwkv6ForCausalLM"])
def test_treated_reading_has_the_same_bits_in_bf16_too(name: str) -> None:
    with torch.inference_mode():
        model = load_model(open_small(name), dtype=torch.bfloat16)
        pools = [StatePool(model.state_spec, SLOTS) for _ in range(2)]
        tokens, forget = random_tokens(model, LENGTH, seed=6), 1.0 if name == "MambaForCausalLM" else 0.99
        for pool, lengths in zip(pools, ([LENGTH], random_lengths(LENGTH, 6, 1)), strict=True):
            for piece in torch.tensor(tokens).split(lengths):
                read(model, pool, piece.tolist(), Treatment(forget, 0.8))
        assert all(torch.equal(tensor, pools[1].tensors[name]) for name, tensor in pools[0].tensors.items())


@pytest.mark.parametrize("seed", [0, 1])
def test_treated_reading_has_the_same_bits_in_any_pieces(model: Model, seed: int) -> None:
    spec = window_spec(model.family, model.state_spec)
    pools = [StatePool(model.state_spec, SLOTS, window=spec) for _ in range(2)]
    tokens = random_tokens(model, LENGTH, seed)
    for pool, lengths in zip(pools, ([LENGTH], random_lengths(LENGTH, seed, 1)), strict=True):
        for piece in torch.tensor(tokens).split(lengths):
            read(model, pool, piece.tolist(), Treatment(0.99, 0.8, pool.sums_of_decays()))
    for name, tensor in (pools[0].tensors | pools[0].window_tensors).items():
        other = (pools[1].tensors | pools[1].window_tensors)[name]
        assert torch.equal(tensor, other), name
