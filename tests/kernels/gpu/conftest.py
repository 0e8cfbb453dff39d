"""Runs the Triton kernels in Triton's interpreter, on CPU tensors.

Without Triton these tests are skipped, but never where CI is set: there its absence is an error.
"""

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

HAS_TRITON = importlib.util.find_spec("triton") is not None
if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
    raise RuntimeError("Triton was imported before its interpreter could be chosen: set TRITON_INTERPRET=1 yourself")
os.environ["TRITON_INTERPRET"] = "1"


class WithoutTriton(pytest.Module):
    """A test file that is skipped before it is imported."""

    def collect(self) -> Iterator[pytest.Item]:
        """Raises pytest's Skipped, with what there is to do about it."""
        pytest.skip("there is no Triton here: `pip install triton` (Linux) runs its kernels in its interpreter")


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    if HAS_TRITON or os.environ.get("CI"):
        return None
    return WithoutTriton.from_parent(parent, path=module_path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The interpreter is slow, and so is compiling for several GPUs."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.long)


@pytest.fixture(autouse=True)
def _poisoned_outputs() -> Iterator[None]:
    """PyTorch's deterministic mode fills what `torch.empty` returns with NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True, scope="session")
def _quick_interpreter() -> None:
    from tests.interpreter import look_once

    look_once()


@pytest.fixture(autouse=True)
def _bfloat16_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter keeps bf16 as 16-bit integers: it rounds to zero, and multiplies matrices of these integers."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cast, product = InterpreterBuilder.cast_impl, InterpreterBuilder.create_dot

    def rounded_cast(builder: InterpreterBuilder, x: TensorHandle, to: tl.dtype) -> TensorHandle:
        if (x.dtype.scalar, to.scalar) != (tl.float32, tl.bfloat16):
            return cast(builder, x, to)
        nearest = torch.from_numpy(x.data.copy()).bfloat16().view(torch.uint16)
        return TensorHandle(nearest.numpy(), tl.bfloat16)

    def wide_product(builder: InterpreterBuilder, a: TensorHandle, b: TensorHandle, *rest: object) -> TensorHandle:
        narrow = a.dtype.scalar == b.dtype.scalar == tl.bfloat16
        return product(builder, *(cast(builder, x, tl.float32) if narrow else x for x in (a, b)), *rest)

    monkeypatch.setattr(InterpreterBuilder, "cast_impl", rounded_cast)
    monkeypatch.setattr(InterpreterBuilder, "create_dot", wide_product)


@pytest.fixture
def programs_run_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter runs one program after the other; this is as near to a race as it can come."""
    from triton.runtime.interpreter import interpreter_builder

    forwards = interpreter_builder.set_grid_idx

    def backwards(*index: int) -> None:
        forwards(*(size - 1 - i for size, i in zip(interpreter_builder.grid_dim, index, strict=True)))

    monkeypatch.setattr(interpreter_builder, "set_grid_idx", backwards)
