"""RWKV-7's operators around the recurrence: the authors' own function, the references, and exactness."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ostinato.kernels.packed import Packed
from ostinato.kernels.recurrence import recurrence
from ostinato.kernels.rwkv7 import rwkv7_inputs, rwkv7_inputs_ref, rwkv7_output, rwkv7_output_ref
from ostinato.kernels.shift import token_shift
from tests.kernels.random_batches import relative_error, same_bits, thread_counts, uniform

pytestmark = pytest.mark.usefixtures("poisoned_outputs")
ROOT = Path(__file__).parents[2]
SIZES = [(1, 64), (2, 32), (3, 20), (5, 7), (1, 1)]
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 3e-3, torch.float16: 4e-4}
Operands = dict[str, Tensor]


def input_operands(tokens: int, heads: int, width: int, *, first_layer: bool, seed: int = 0) -> Operands:
    generator = torch.Generator().manual_seed(seed)
    names = ["key", "value", "decay", "rate", *([] if first_layer else ["first_value", "value_gate"])]
    operands = {name: uniform(generator, tokens, heads * width, low=-4.0, high=4.0) for name in names}
    return operands | {name: uniform(generator, heads * width) for name in ("key_norm", "key_gate")}


def call_inputs(function: Callable[..., tuple[Tensor, ...]], x: Operands, heads: int) -> tuple[Tensor, ...]:
    per_token = [x.get(name) for name in ("key", "value", "decay", "rate", "first_value", "value_gate")]
    return function(*per_token, x["key_norm"], x["key_gate"], heads)


def output_operands(tokens: int, heads: int, width: int, seed: int = 0) -> Operands:
    generator = torch.Generator().manual_seed(seed)
    operands = {name: uniform(generator, tokens, heads * width) for name in ("r", "k", "v", "gate")}
    parameters = {name: uniform(generator, heads, width) for name in ("bonus", "norm_weight", "norm_bias")}
    return {"y": uniform(generator, tokens, heads, width, high=3.0), **operands, **parameters}


def per_token(x: Operands, rows: slice) -> Operands:
    parameters = ("key_norm", "key_gate", "bonus", "norm_weight", "norm_bias")
    return {name: tensor if name in parameters else tensor[rows].clone() for name, tensor in x.items()}


@pytest.mark.parametrize("first_layer", [True, False])
@pytest.mark.parametrize(("heads", "width"), SIZES)
def test_native_inputs_equal_the_reference(heads: int, width: int, first_layer: bool) -> None:
    operands = input_operands(11, heads, width, first_layer=first_layer)
    operands["key"][3] = 0.0  # which cannot be normalised
    found, expected = (call_inputs(function, operands, heads) for function in (rwkv7_inputs, rwkv7_inputs_ref))
    for x, y in zip(found, expected, strict=True):
        assert relative_error(x, y) <= 2e-6
    assert not found[2][3].any()
    assert float(found[0].max()) <= 0.0
    assert float(found[0].min()) >= -0.60654


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(("heads", "width"), SIZES)
def test_native_output_equals_the_reference(heads: int, width: int, dtype: torch.dtype) -> None:
    operands = output_operands(11, heads, width)
    found, expected = (f(**operands, eps=64e-5, dtype=dtype) for f in (rwkv7_output, rwkv7_output_ref))
    double = {name: x.double() for name, x in operands.items()}
    assert found.dtype == dtype
    assert relative_error(found, rwkv7_output_ref(**double, eps=64e-5, dtype=torch.float64)) <= ROUNDING[dtype]
    assert relative_error(found, expected) <= ROUNDING[dtype]


def time_mix_operands(layer: int) -> Operands:
    """What one layer of `rwkv` is called with, as its function names it: 3 heads of 16, 21 tokens."""
    generator = torch.Generator().manual_seed(layer)
    tokens, heads, width, rank = 21, 3, 16, 8
    channels = heads * width
    mixes = {f"x_{part}": uniform(generator, channels, low=0.0) for part in "rwkvag"}
    vectors = ("w0", "a0", "v0", "k_k", "k_a", "r_k", "ln_w", "ln_b", "x_prev")
    matrices = {f"{part}_": uniform(generator, channels, channels) * 0.3 for part in "RKVO"}
    down = {f"{part}1": uniform(generator, channels, rank) * 0.5 for part in "wavg"}
    up = {f"{part}2": uniform(generator, rank, channels) * 0.5 for part in "wavg"}
    rows = {name: uniform(generator, tokens, channels) for name in ("x", "v_first")}
    state = uniform(generator, heads, width, width)
    parameters = {name: uniform(generator, channels) for name in vectors}
    return {**mixes, **matrices, **down, **up, **rows, **parameters, "state": state, "layer": torch.tensor(layer)}


@pytest.mark.parametrize("layer", [0, 1])
def test_the_operators_are_the_time_mix_of_the_authors(layer: int, tmp_path: Path) -> None:
    p = time_mix_operands(layer)
    save_file(p, tmp_path / "in.safetensors")
    command = [
        sys.executable,
        "-m",
        "tests.oracles.rwkv7_time_mix",
        *(f"{tmp_path}/{x}.safetensors" for x in ("in", "out")),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    theirs = load_file(tmp_path / "out.safetensors")
    heads, width = p["state"].shape[:2]
    shift, pool, batch = torch.stack([p["x_prev"]] * 2), torch.stack([p["state"]] * 2), Packed.of([1], [21], dst=[0])
    xr, xw, xk, xv, xa, xg = token_shift(p["x"], torch.stack([p[f"x_{part}"] for part in "rwkvag"]), shift, batch)
    r, value = xr @ p["R_"], xv @ p["V_"]
    log_decay, k, a, b, v = rwkv7_inputs(
        xk @ p["K_"],
        value,
        p["w0"] + torch.tanh(xw @ p["w1"]) @ p["w2"],
        p["a0"] + (xa @ p["a1"]) @ p["a2"],
        p["v_first"] if layer else None,
        p["v0"] + (xv @ p["v1"]) @ p["v2"] if layer else None,
        p["k_k"],
        p["k_a"],
        heads,
    )
    split = [x.unflatten(-1, (heads, width)) for x in (r, k, v, log_decay, a, b)]
    y = recurrence(*split[:3], pool, batch, log_decay=split[3], a=split[4], b=split[5])
    gate = torch.sigmoid(xg @ p["g1"]) @ p["g2"]
    bonus, weight, bias = (p[name].view(heads, width) for name in ("r_k", "ln_w", "ln_b"))
    y = rwkv7_output(y, r, k, v, gate, bonus, weight, bias, 64e-5, torch.float32)
    assert relative_error(y @ p["O_"], theirs["y"]) <= 1e-5
    assert relative_error(pool[0], theirs["state"]) <= 1e-5
    assert relative_error(p["v_first"] if layer else value, theirs["v_first"]) <= 1e-6
    assert same_bits(shift[0], theirs["last"])


@pytest.mark.parametrize(("heads", "width"), [*SIZES, (12, 64)])
def test_a_token_does_not_depend_on_the_others_or_on_threads(heads: int, width: int) -> None:
    before, after = input_operands(700, heads, width, first_layer=False), output_operands(700, heads, width)
    inputs = call_inputs(rwkv7_inputs, before, heads)
    output = rwkv7_output(**after, eps=64e-5, dtype=torch.bfloat16)
    for _ in thread_counts(1, 2):
        for rows in (slice(1), slice(3, 4), slice(7, 600), slice(699, 700), slice(5, 5)):
            found = call_inputs(rwkv7_inputs, per_token(before, rows), heads)
            assert all(same_bits(x, y[rows]) for x, y in zip(found, inputs, strict=True))
            assert same_bits(rwkv7_output(**per_token(after, rows), eps=64e-5, dtype=torch.bfloat16), output[rows])


def test_references_have_gradients() -> None:
    leaves = {name: x.double().requires_grad_() for name, x in input_operands(2, 2, 3, first_layer=False).items()}
    names = list(leaves)

    def inputs(*tensors: Tensor) -> tuple[Tensor, ...]:
        return call_inputs(rwkv7_inputs_ref, dict(zip(names, tensors, strict=True)), 2)

    assert torch.autograd.gradcheck(inputs, tuple(leaves.values()))
    after = [x.double().requires_grad_() for x in output_operands(2, 2, 3).values()]
    assert torch.autograd.gradcheck(lambda *x: rwkv7_output_ref(*x, eps=64e-5, dtype=torch.float64), after)


def test_operands_that_do_not_fit_are_refused() -> None:
    before, after = input_operands(2, 2, 3, first_layer=False), output_operands(2, 2, 3)
    for name, x in before.items():
        for changed in (x[..., :-1], torch.stack([x, x], dim=-1)[..., 0]):
            with pytest.raises(ValueError, match=r"rwkv7_inputs: .* must be contiguous, of shape"):
                call_inputs(rwkv7_inputs, before | {name: changed}, 2)
        with pytest.raises(TypeError, match=r"rwkv7_inputs: \w+ must be float32"):
            call_inputs(rwkv7_inputs, before | {name: x.bfloat16()}, 2)
    for name in ("first_value", "value_gate"):
        with pytest.raises(ValueError, match="go together"):
            call_inputs(rwkv7_inputs, {key: x for key, x in before.items() if key != name}, 2)
    with pytest.raises(ValueError, match="heads divide the channels"):
        call_inputs(rwkv7_inputs, before, 4)
    for name, x in after.items():
        for changed in (x[..., :-1], torch.stack([x, x], dim=-1)[..., 0]):
            with pytest.raises(ValueError, match=r"rwkv7_output: .* must be contiguous, of shape"):
                rwkv7_output(**(after | {name: changed}), eps=1e-5, dtype=torch.float32)
        with pytest.raises(TypeError, match=r"rwkv7_output: \w+ must be float32"):
            rwkv7_output(**(after | {name: x.half()}), eps=1e-5, dtype=torch.float32)
