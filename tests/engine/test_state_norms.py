"""The state pool's norms, clipping and window, against plain arithmetic in fp64."""

from __future__ import annotations

import math

import pytest
import torch

from ostinato.engine.state_pool import StatePool
from ostinato.models.base import StateSpec, StateTensor
from ostinato.models.recurrent_memory import window_spec

SPEC = StateSpec(
    (
        StateTensor("recurrent", 2, (3, 4, 5), torch.float32),
        StateTensor("conv", 2, (3, 7), torch.float32),
        StateTensor("position", 1, (), torch.int64),
    )
)
FLAT = StateSpec((StateTensor("recurrent", 2, (9,), torch.float32),))


def filled(spec: StateSpec, seed: int, *, window: bool = False) -> StatePool:
    pool = StatePool(spec, 4, window=window_spec("GLA", spec) if window else None)
    generator = torch.Generator().manual_seed(seed)
    for tensor in (*pool.tensors.values(), *pool.window_tensors.values()):
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return pool


@pytest.mark.parametrize("spec", [SPEC, FLAT], ids=["matrices", "vectors"])
def test_norms_are_of_every_head_of_every_layer(spec: StateSpec) -> None:
    pool = filled(spec, 1)
    heads = pool.tensors["recurrent"][:, 2].double().reshape(2, 3 if spec is SPEC else 1, -1)
    wanted = heads.square().sum(-1).sqrt().flatten()
    assert torch.allclose(pool.norms(2), wanted, rtol=1e-6)


def test_norms_do_not_overflow_and_see_what_is_not_finite() -> None:
    pool = filled(SPEC, 1)
    pool.tensors["recurrent"][0, 1, 0] = 1e30
    assert float(pool.norms(1).max()) == pytest.approx(1e30 * math.sqrt(20))
    for bad in (math.nan, math.inf, -math.inf):
        pool.tensors["recurrent"][1, 1, 2, 3, 4] = bad
        assert not math.isfinite(float(pool.norms(1).mean()))
        assert math.isfinite(float(pool.norms(2).mean()))


def test_clipping_scales_what_is_too_large_and_nothing_else() -> None:
    pool = filled(SPEC, 2, window=True)
    pool.begin_window(1)
    before = {name: tensor.clone() for name, tensor in (pool.tensors | pool.window_tensors).items()}
    norms = pool.norms(1)
    most = float(norms.median())
    pool.clip(1, most)
    assert float(pool.norms(1).max()) <= most * (1 + 1e-6)
    factor = (most / norms).clamp(max=1.0).view(2, 3, 1, 1)
    for name in ("recurrent", "previous_recurrent"):
        tensor = (pool.tensors | pool.window_tensors)[name]
        assert torch.allclose(tensor[:, 1].double(), before[name][:, 1].double() * factor, rtol=1e-6)
        small = norms.view(2, 3) <= most
        assert torch.equal(tensor[:, 1][small], before[name][:, 1][small])
    for name, tensor in (pool.tensors | pool.window_tensors).items():
        if name not in ("recurrent", "previous_recurrent"):
            assert torch.equal(tensor, before[name]), name
        assert torch.equal(tensor[:, [0, 2, 3]], before[name][:, [0, 2, 3]]), name


def test_cutting_a_window_takes_the_decayed_older_state_out() -> None:
    pool = filled(SPEC, 3, window=True)
    state, before, sums = (
        (pool.tensors | pool.window_tensors)[name][:, 1].double().clone()
        for name in ("recurrent", "previous_recurrent", "decays_recurrent")
    )
    pool.cut_window(1)
    wanted = state - sums.exp().unsqueeze(-2) * before
    assert torch.allclose(pool.tensors["recurrent"][:, 1].double(), wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(pool.tensors["recurrent"][:, 1], pool.window_tensors["previous_recurrent"][:, 1])
    assert not pool.window_tensors["decays_recurrent"][:, 1].any()


def test_only_slots_with_a_window_save_and_load_one() -> None:
    pool = filled(SPEC, 4, window=True)
    assert pool.save(0).keys() == pool.tensors.keys()
    pool.begin_window(0)
    saved = pool.save(0)
    assert saved.keys() == (pool.tensors | pool.window_tensors).keys()
    pool.clear(0)
    assert not any(tensor[:, 0].any() for tensor in (pool.tensors | pool.window_tensors).values())
    assert pool.save(0).keys() == pool.tensors.keys()
    pool.load(3, saved)
    assert pool.save(3).keys() == saved.keys()
    assert all(torch.equal(pool.save(3)[name], saved[name]) for name in saved)
    pool.load(3, {name: tensor for name, tensor in saved.items() if name in pool.tensors})
    assert pool.save(3).keys() == pool.tensors.keys()
    assert not any(tensor[:, 3].any() for tensor in pool.window_tensors.values())


def test_the_mean_decay_is_of_the_tokens_that_were_added_up() -> None:
    pool = filled(SPEC, 5, window=True)
    assert pool.mean_decay(1) is None
    pool.window_tensors["decays_recurrent"][:, 1] = 8 * math.log(0.9)
    pool.count_decays(1, 8)
    assert pool.mean_decay(1) == pytest.approx(0.9)
    assert pool.mean_decay(2) is None
    assert StatePool(SPEC, 1).mean_decay(0) is None


def test_families_without_a_window_have_no_memory_for_one() -> None:
    with pytest.raises(ValueError, match="DeltaNet has no sliding window"):
        window_spec("DeltaNet", SPEC)
