"""The recurrence against independent implementations of every family: outputs, states and gradients."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from ostinato.kernels.packed import Packed
from ostinato.kernels.recurrence import recurrence, recurrence_ref
from tests.kernels.random_batches import relative_error, uniform

ROOT = Path(__file__).parents[2]
T, H, V, K = 37, 4, 20, 12

# What each family's implementation does to q and k by itself.
NORMALIZE = {"gated_delta_net"}
UNSCALED = {"rwkv6", "mamba", "mamba2"}
FAMILIES = (
    "retnet",
    "mlstm",
    "gla",
    "rwkv6",
    "delta_net",
    "gated_delta_net",
    "kda",
    "rwkv7",
    "mamba",
    "mamba2",
)


def inputs(family: str) -> dict[str, Tensor]:
    """Random operands; RetNet and Mamba begin with an empty state, because their implementations do."""
    generator = torch.Generator().manual_seed(FAMILIES.index(family))

    def draw(*shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
        return uniform(generator, *shape, low=low, high=high)

    heads, groups = (1, 1) if family == "mamba" else (H, 2 if family == "mamba2" else H)
    decays = {"mlstm": (T, H), "gated_delta_net": (T, H), "gla": (T, H, K), "rwkv6": (T, H, K), "kda": (T, H, K)}
    tensors = {
        "q": draw(T, groups, K),
        "k": F.normalize(draw(T, groups, K), dim=-1),
        "v": draw(T, heads, V),
        "of_y": draw(T, heads, V),
        "of_state": draw(heads, V, K),
    }
    if family in decays or family == "rwkv7":
        tensors["log_decay"] = F.logsigmoid(draw(*decays.get(family, (T, H, K)), low=-6.0, high=6.0))
    if family in ("delta_net", "gated_delta_net", "kda"):
        tensors["beta"] = draw(T, H, low=0.0)
    if family == "rwkv7":
        unit = F.normalize(draw(T, H, K), dim=-1)
        tensors |= {"a": -unit, "b": unit * draw(T, H, K, low=0.0)}
    if family == "rwkv6":
        tensors["bonus"] = draw(H, K)
    if family == "mamba":
        tensors |= {"rate": -draw(1, V, K, low=0.1, high=9.0), "step": draw(T, 1, V), "step_bias": draw(1, V)}
        tensors |= {"skip": draw(1, V), "gate": draw(T, 1, V, low=-5.0, high=5.0)}
    if family == "mamba2":
        tensors |= {"rate": -draw(H, low=0.1, high=9.0), "step": draw(T, H), "step_bias": draw(H), "skip": draw(H)}
    if family not in ("mamba", "retnet"):
        tensors["state"] = draw(heads, V, K)
    return tensors


def arguments(family: str, tensors: dict[str, Tensor]) -> dict[str, object]:
    """The operator's, but for the pool and the batch."""
    operands: dict[str, object] = {name: x for name, x in tensors.items() if name not in ("of_y", "of_state", "state")}
    if family == "retnet":
        operands["log_decay"] = torch.log(1 - 2.0 ** (-5.0 - torch.arange(H))).expand(T, H)
    scale = 1.0 if family in UNSCALED else K**-0.5
    return {**operands, "normalize": family in NORMALIZE, "scale": scale}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """All families at once, in another process: importing flash-linear-attention changes other packages."""
    folder = tmp_path_factory.mktemp("recurrences")
    save_file(
        {f"{family}/{name}": x for family in FAMILIES for name, x in inputs(family).items()}, folder / "in.safetensors"
    )
    command = [
        sys.executable,
        "-m",
        "tests.oracles.recurrences",
        f"{folder}/in.safetensors",
        f"{folder}/out.safetensors",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return load_file(folder / "out.safetensors")


@pytest.mark.parametrize("family", FAMILIES)
def test_reference_and_native_equal_the_family(family: str, answers: dict[str, Tensor]) -> None:
    tensors = inputs(family)
    given, batch = arguments(family, tensors), Packed.of([0], [T])
    start = tensors.get("state", torch.zeros(tensors["of_state"].shape)).unsqueeze(0)
    for function, where in (
        (recurrence, {"batch": batch}),
        (recurrence_ref, {"src": batch.src, "dst": batch.dst, "starts": batch.starts, "longest": T}),
    ):
        pool = start.clone()
        y = function(**given, **where, state=pool)
        assert relative_error(y, answers[f"{family}/y"]) <= 1e-5
        if f"{family}/state" in answers:
            assert relative_error(pool[0], answers[f"{family}/state"]) <= 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_the_reference_equal_the_family_s(family: str, answers: dict[str, Tensor]) -> None:
    tensors = inputs(family)
    leaves = {name: x.requires_grad_() for name, x in tensors.items() if not name.startswith("of_")}
    pool, batch = torch.zeros(2, *tensors["of_state"].shape), Packed.of([0], [T], dst=[1])
    if "state" in tensors:
        pool = torch.stack([tensors["state"], pool[1]])
    where = {"src": batch.src, "dst": batch.dst, "starts": batch.starts, "longest": T}
    y = recurrence_ref(**arguments(family, tensors), **where, state=pool)
    loss = (y * tensors["of_y"]).sum()
    if f"{family}/state" in answers:
        loss = loss + (pool[1] * tensors["of_state"]).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    for name, gradient in zip(leaves, gradients, strict=True):
        assert relative_error(gradient, answers[f"{family}/gradient/{name}"]) <= 1e-4, name
