"""The recurrence: reference against independent implementations, C++ against the reference, and exactness."""

import pytest
import torch
from torch import Tensor

from ostinato.kernels.recurrence import recurrence, recurrence_ref
from tests.kernels.random_batches import SLOTS, pack, random_batch, relative_error, uniform

FORMS = ("plain", "decay", "delta", "decay-delta", "matrix")


def inputs(form: str, tokens: int, heads: int, rows: int, width: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Random q, k, v and what the form needs, with decays from nearly 0 to nearly 1 and a contractive delta."""
    key, value = (tokens, heads, width), (tokens, heads, rows)
    tensors = {"q": uniform(generator, *key), "k": uniform(generator, *key), "v": uniform(generator, *value)}
    if form in ("decay", "decay-delta"):
        tensors["decay"] = torch.sigmoid(uniform(generator, *key, low=-12.0, high=12.0))
    if form in ("delta", "decay-delta"):
        unit = torch.nn.functional.normalize(uniform(generator, *key), dim=-1)
        tensors |= {"a": -unit, "b": unit * uniform(generator, *key, low=0.0)}
    if form == "matrix":
        tensors["rate"] = -uniform(generator, heads, rows, width, low=1e-4, high=16.0)
        tensors["step"] = uniform(generator, *value, low=1e-4, high=2.0)
    return tensors


def shape(generator: torch.Generator) -> tuple[int, int, int]:
    """Heads, rows and width, mostly no powers of two."""
    heads, rows, width = (int(torch.randint(1, high, (), generator=generator)) for high in (5, 40, 70))
    return heads, rows, width


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(12))
def test_native_equals_reference(form: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch, (heads, rows, width) = random_batch(generator), shape(generator)
    tensors = inputs(form, batch.tokens, heads, rows, width, generator)
    state = uniform(generator, SLOTS, heads, rows, width)
    poisoned = state.clone()
    poisoned[batch.untouched] = torch.nan
    found_state, expected_state = poisoned.clone(), state.clone()
    found = recurrence(**tensors, state=found_state, slots=batch.slots, starts=batch.starts)
    expected = recurrence_ref(**tensors, state=expected_state, slots=batch.slots, starts=batch.starts)
    used = [i for i in range(SLOTS) if i not in batch.untouched.tolist()]
    assert relative_error(found, expected) <= 1e-5
    assert relative_error(found_state[used], expected_state[used]) <= 1e-5
    assert found_state[batch.untouched].isnan().all()
    assert torch.equal(expected_state[batch.untouched], state[batch.untouched])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", range(6))
def test_any_split_gives_the_same_bits(form: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(100 + seed)
    heads, rows, width = shape(generator)
    tokens = 50
    tensors = inputs(form, tokens, heads, rows, width, generator)
    state = uniform(generator, SLOTS, heads, rows, width)
    whole = state.clone()
    batch = pack([tokens], [4])
    expected = recurrence(**tensors, state=whole, slots=batch.slots, starts=batch.starts)
    start, pieces, split = 0, [], state.clone()
    while start < tokens:
        length = min(tokens - start, int(torch.randint(1, 20, (), generator=generator)))
        piece = {n: x if n == "rate" else x[start : start + length] for n, x in tensors.items()}
        # A batch mate beside it must not matter either.
        mate = inputs(form, 3, heads, rows, width, generator)
        both = {n: x if n == "rate" else torch.cat([mate[n], x]) for n, x in piece.items()}
        batch = pack([3, length], [int(torch.randint(0, 4, (), generator=generator)), 4])
        pieces.append(recurrence(**both, state=split, slots=batch.slots, starts=batch.starts)[3:])
        start += length
    assert torch.equal(torch.cat(pieces), expected)
    assert torch.equal(split[4], whole[4])


@pytest.mark.parametrize("form", FORMS)
def test_threads_do_not_matter(form: str) -> None:
    generator = torch.Generator().manual_seed(7)
    tensors = inputs(form, 64, 4, 48, 64, generator)
    batch = pack([20, 1, 43], [3, 0, 5])
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            state = torch.ones(SLOTS, 4, 48, 64)
            results.append((recurrence(**tensors, state=state, slots=batch.slots, starts=batch.starts), state))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(y, results[0][0]) and torch.equal(s, results[0][1]) for y, s in results)


def test_reference_is_the_published_gla_recurrence() -> None:
    """Against fla's naive form, whose state is [K, V] and whose gates are logarithms."""
    naive = pytest.importorskip(
        "fla.ops.gla.naive", reason="install the `test` extra for flash-linear-attention", exc_type=ImportError
    )
    generator = torch.Generator().manual_seed(3)
    tensors = inputs("decay", 37, 3, 20, 12, generator)
    state = uniform(generator, 1, 3, 20, 12)
    expected, last = naive.naive_recurrent_gla(
        *(tensors[name].unsqueeze(0) for name in ("q", "k", "v")),
        gk=tensors["decay"].log().unsqueeze(0),
        initial_state=state.transpose(-1, -2).clone(),
        output_final_state=True,
    )
    batch = pack([37], [0])
    found = recurrence_ref(**tensors, state=state, slots=batch.slots, starts=batch.starts)
    assert relative_error(found * 12**-0.5, expected[0]) <= 1e-5  # naive_recurrent_gla scales q by K^-0.5
    assert relative_error(state, last.transpose(-1, -2)) <= 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decay": torch.ones(2, 1, 4), "rate": torch.ones(1, 3, 4)}, "do not go together"),
        ({"a": torch.ones(2, 1, 4)}, "do not go together"),
        ({"k": torch.ones(2, 1, 5)}, "shapes do not fit"),
        ({"decay": torch.ones(2, 2, 4)}, "shapes do not fit"),
        ({"state": torch.zeros(2, 1, 4, 4)}, "shapes do not fit"),
        ({"starts": torch.tensor([0, 1, 2], dtype=torch.int32)}, "one more start"),
        ({"state": torch.zeros(2, 1, 4, 3).transpose(-1, -2)}, "contiguous"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change: dict[str, Tensor], message: str) -> None:
    arguments = {
        "q": torch.ones(2, 1, 4),
        "k": torch.ones(2, 1, 4),
        "v": torch.ones(2, 1, 3),
        "state": torch.zeros(2, 1, 3, 4),
        "slots": torch.tensor([0], dtype=torch.int32),
        "starts": torch.tensor([0, 2], dtype=torch.int32),
    }
    with pytest.raises(ValueError, match=message):
        recurrence(**(arguments | change))


def test_wrong_dtypes_are_refused() -> None:
    batch = pack([2], [0])
    q, v, state = torch.ones(2, 1, 4), torch.ones(2, 1, 3), torch.zeros(2, 1, 3, 4)
    with pytest.raises(TypeError, match="float32"):
        recurrence(q.double(), q, v, state, batch.slots, batch.starts)
    with pytest.raises(TypeError, match="int32"):
        recurrence(q, q, v, state, batch.slots.long(), batch.starts)
