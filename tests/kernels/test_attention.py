"""Sliding-window attention: reference against independent implementations, C++ against PyTorch's, and exactness."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MistralConfig, MistralModel
from transformers.models.mistral import modeling_mistral

from ostinato.kernels import dispatch
from ostinato.kernels.attention import window_attention, window_attention_ref
from ostinato.kernels.packed import Packed
from tests.kernels.attention_cases import (
    SLOTS,
    Call,
    Case,
    Shape,
    expected_output,
    expected_rings,
    make_case,
    random_calls,
    random_shape,
    same_bits,
)
from tests.kernels.random_batches import relative_error, uniform

pytestmark = pytest.mark.usefixtures("poisoned_outputs")


def native(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, past: Tensor,
    src: Tensor, dst: Tensor, starts: Tensor, longest: int, scale: float, far: Tensor | None = None, sinks: int = 0,
) -> Tensor:  # fmt: skip
    batch = Packed(src, dst, starts, longest)
    return window_attention(q, k, v, keys, values, past, batch, scale=scale, far=far, sinks=sinks)


def random_case(seed: int, longest: int = 1, dtype: torch.dtype = torch.float32, sinks: int = 0) -> Case:
    generator = torch.Generator().manual_seed(seed)
    shape = random_shape(generator, sinks)
    return make_case(generator, shape, random_calls(generator, shape.window, longest), dtype)


@pytest.mark.parametrize("operator", [window_attention_ref, native])
@pytest.mark.parametrize("seed", range(24))
def test_equals_attention_over_the_whole_history(seed: int, operator: Any) -> None:
    case = random_case(seed, longest=1 + seed * 13)
    found, *rings = case.run(operator)
    assert relative_error(found, expected_output(case)) <= 1e-5
    assert all(same_bits(x, y) for x, y in zip(rings, expected_rings(case), strict=True))


@pytest.mark.parametrize("operator", [window_attention_ref, native])
@pytest.mark.parametrize("sinks", [1, 4, 16, 19])
@pytest.mark.parametrize("seed", range(8))
def test_sinks_stay_in_sight(seed: int, sinks: int, operator: Any) -> None:
    case = random_case(seed, longest=1 + seed * 13, sinks=sinks)
    found, *rings = case.run(operator)
    assert relative_error(found, expected_output(case)) <= 1e-5
    assert all(same_bits(x, y) for x, y in zip(rings, expected_rings(case), strict=True))


def test_up_to_the_window_sinks_change_nothing() -> None:
    generator = torch.Generator().manual_seed(3)
    case = make_case(generator, Shape(40, 4, 2, 20, 5), [Call(11, 29, 0, 0)])
    case = replace(case, far=case.q)
    without = replace(case, shape=replace(case.shape, sinks=0), far=None)
    assert all(relative_error(x, y) <= 1e-6 for x, y in zip(case.run(native)[:1], without.run(native)[:1], strict=True))
    assert all(same_bits(x, y) for x, y in zip(case.run(native)[1:], without.run(native)[1:], strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("operator", [window_attention_ref, native])
@pytest.mark.parametrize("seed", range(4))
def test_short_dtypes_are_rounded_nowhere(seed: int, operator: Any, dtype: torch.dtype) -> None:
    case = random_case(seed, longest=40, dtype=dtype)
    if seed % 2:
        case = replace(case, q=case.q.float())
    found, *rings = case.run(operator)
    assert relative_error(found, expected_output(case)) <= 1e-5
    assert all(same_bits(x, y) for x, y in zip(rings, expected_rings(case), strict=True))


@pytest.mark.parametrize("window", [1, 3, 16])
@pytest.mark.parametrize("length", [1, 16, 17, 40])
def test_equals_mistral_in_transformers(length: int, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its attention is given and returns, so with its own mask: this is the off-by-one of the convention."""
    seen: dict[str, Tensor] = {}
    eager = modeling_mistral.eager_attention_forward

    def spy(module: torch.nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, **options: Any) -> Any:
        y = eager(module, q, k, v, mask, **options)
        seen.update(q=q[0].transpose(0, 1), k=k[0].transpose(0, 1), v=v[0].transpose(0, 1), y=y[0][0])
        return y

    monkeypatch.setattr(modeling_mistral, "eager_attention_forward", spy)
    torch.manual_seed(length)
    sizes = {"hidden_size": 32, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": window}
    with torch.no_grad():
        MistralModel(MistralConfig(**sizes, **heads, attn_implementation="eager"))(torch.randint(64, (1, length)))
    ring = torch.full((1, window, 2, 8), torch.nan)
    q, k, v = (seen[name].contiguous() for name in "qkv")
    batch, past = Packed.of([0], [length]), torch.zeros(1, dtype=torch.int64)
    for operator in (window_attention_ref, native):
        where = (past, batch.src, batch.dst, batch.starts, batch.longest)
        assert relative_error(operator(q, k, v, ring.clone(), ring.clone(), *where, 8**-0.5), seen["y"]) <= 1e-5


def test_the_reference_has_the_gradients_of_pytorch() -> None:
    generator = torch.Generator().manual_seed(0)
    case = make_case(generator, Shape(5, 4, 2, 6), [Call(0, 9, -1, -1)])
    inputs = [x.clone().requires_grad_() for x in (case.q, case.k, case.v)]
    towards = uniform(generator, 9, 4, 6)

    def gradients(y: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((y * towards).sum(), inputs)

    case = replace(case, q=inputs[0], k=inputs[1], v=inputs[2], histories=((inputs[1], inputs[2]),))
    found, expected = gradients(case.run(window_attention_ref)[0]), gradients(expected_output(case))
    assert all(relative_error(x, y) <= 1e-5 for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sinks", [0, 3, 18])
@pytest.mark.parametrize("seed", range(12))
def test_any_split_gives_the_same_bits(seed: int, sinks: int, dtype: torch.dtype) -> None:
    """Token by token, in chunks, beside random batch mates, and moved from slot to slot on the way."""
    generator = torch.Generator().manual_seed(100 + seed)
    shape = random_shape(generator, sinks) if seed % 2 else Shape(33 + sinks, 4, 2, 64, sinks)
    tokens = 3 * shape.window + 20
    whole = make_case(generator, shape, [Call(0, tokens, -1, 0)], dtype)
    expected, *expected_rings = whole.run(native)
    start, pieces, slot = 0, [], -1
    rings = whole.keys.clone(), whole.values.clone()
    while start < tokens:
        length = min(tokens - start, 1 if seed % 3 == 0 else int(torch.randint(1, 30, (), generator=generator)))
        mate = make_case(generator, shape, [Call(11, 1 + start % 9, 6, 7)], dtype)
        for ring, other in zip(rings, (mate.keys, mate.values), strict=True):
            ring[6] = other[6]
        q, far, k, v = (
            None if x is None or m is None else torch.cat([m, x[start : start + length]])
            for m, x in zip((mate.q, mate.far, mate.k, mate.v), (whole.q, whole.far, whole.k, whole.v), strict=True)
        )
        assert q is not None
        assert k is not None
        assert v is not None
        target = start % 5
        batch = Packed.of([6, slot], [len(mate.q), length], dst=[7, target])
        past = torch.tensor([11, start])
        y = window_attention(q, k, v, *rings, past, batch, scale=whole.scale, far=far, sinks=sinks)
        pieces.append(y[len(mate.q) :])
        start, slot = start + length, target
    assert torch.equal(torch.cat(pieces), expected)
    assert all(same_bits(x[slot], y[0]) for x, y in zip(rings, expected_rings, strict=True))


def test_threads_do_not_matter() -> None:
    generator, threads, results = torch.Generator().manual_seed(7), torch.get_num_threads(), []
    shape = Shape(33, 6, 2, 40)
    calls = [Call(50, 70, 0, 1), *(Call(20 * i, 1, i, i) for i in range(2, SLOTS))]
    case = make_case(generator, shape, calls)
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            results.append(case.run(native))
    finally:
        torch.set_num_threads(threads)
    assert all(same_bits(x, y) for result in results for x, y in zip(result, results[0], strict=True))


def test_the_operator_is_declared_as_it_behaves() -> None:
    case = random_case(3, longest=20)
    batch, operator = case.batch, dispatch.operators(case.q).window_attention.default
    where = (case.past, batch.src, batch.dst, batch.starts, batch.longest, case.scale)
    rings = (torch.zeros_like(case.keys), torch.zeros_like(case.values))
    torch.library.opcheck(operator, (case.q, case.k, case.v, *rings, *where))


def test_no_sequences_give_no_rows() -> None:
    ring, batch = torch.zeros(1, 4, 1, 2), Packed.of([], [])
    x = torch.zeros(0, 1, 2)
    assert window_attention(x, x, x, ring, ring.clone(), torch.zeros(0).int(), batch, scale=1.0).shape == (0, 1, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.ones(2, 3, 4)}, "shapes do not fit"),
        ({"v": torch.ones(1, 1, 4)}, "shapes do not fit"),
        ({"q": torch.ones(2, 3, 4)}, "shapes do not fit"),
        ({"values": torch.ones(2, 4, 2, 4)}, "shapes do not fit"),
        ({"past": torch.zeros(2, dtype=torch.int32)}, "past must be"),
        ({"past": torch.zeros(1)}, "past must be"),
        ({"values": torch.ones(2, 3, 4, 2).transpose(-1, -2)}, "contiguous, since"),
        ({"q": torch.ones(4, 4, 2).transpose(0, 2)}, "must be contiguous, got"),
        ({"sinks": 3}, "sinks must be fewer"),
        ({"sinks": -1}, "sinks must be fewer"),
        ({"sinks": 1, "far": torch.ones(2, 4, 5)}, "far must be like q"),
        ({"sinks": 1, "far": torch.ones(4, 4, 2).transpose(0, 2)}, "token of far must be contiguous"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _call(change)


def _call(change: dict[str, Any]) -> Tensor:
    arguments = {"q": torch.ones(2, 4, 4), "k": torch.ones(2, 2, 4), "v": torch.ones(2, 2, 4)}
    rings = {"keys": torch.zeros(2, 3, 2, 4), "values": torch.zeros(2, 3, 2, 4), "past": torch.zeros(1).int()}
    return window_attention(**(arguments | rings | change), batch=Packed.of([0], [2]), scale=1.0)


@pytest.mark.parametrize("change", [{"q": torch.ones(2, 4, 4).double()}, {"v": torch.ones(2, 2, 4).half()}])
def test_dtypes_that_do_not_fit_are_refused(change: dict[str, Tensor]) -> None:
    with pytest.raises(TypeError, match="dtypes do not fit"):
        _call(change)


@pytest.mark.parametrize(("src", "past", "message"), [(-1, 3, "no source"), (0, -1, "past"), (8, 0, "slot 8")])
def test_values_that_would_leave_memory_are_refused(src: int, past: int, message: str) -> None:
    case = make_case(torch.Generator().manual_seed(0), Shape(4, 2, 1, 4), [Call(0, 2, 0, 0)])
    batch = Packed.of([src], [2], dst=[0])
    with pytest.raises(RuntimeError, match=message):
        window_attention(case.q, case.k, case.v, case.keys, case.values, torch.tensor([past]), batch, scale=case.scale)
