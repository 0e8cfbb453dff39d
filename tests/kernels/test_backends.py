"""What is found on a machine, and what follows from what is missing."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from ostinato.kernels import backends, native
from ostinato.kernels.backends import CPUBackend, CUDADevice, find_backends, rows_are_exact, why_no_cuda
from ostinato.kernels.dispatch import supported_dtypes


def test_this_machine() -> None:
    """Tests need the C++ operators anyway, so this one can rely on them."""
    found = find_backends()
    assert found.torch == torch.__version__
    assert found.cpu.operators_missing is None
    assert found.cpu.library is not None
    assert (native.cache_folder() / found.cpu.library).exists()
    assert found.cpu.threads == torch.get_num_threads()
    assert found.cpu.exact == {
        str(dtype).removeprefix("torch."): True for dtype in supported_dtypes(torch.device("cpu"))
    }
    assert found.cpu.products["float32"] == "onednn"
    assert found.cpu.products.keys() == found.cpu.exact.keys()
    assert not found.cpu.problems()
    assert bool(found.devices) is (found.cuda_missing is None) is torch.cuda.is_available()


def test_without_the_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load", lambda: "compiling failed: line one\nline two")
    found = find_backends().cpu
    assert found.library is None
    assert found.problems() == ["the reference kernels run instead of the C++ operators: compiling failed: line one"]


def backend(**changes: object) -> CPUBackend:
    found = {
        "instruction_set": "AVX2", "amx": False, "threads": 1, "openmp": True, "onednn": True, "compiler": None,
        "kernels": "native", "kernel_cache": "", "library": "x.so", "operators_missing": None,
        "products": {"float32": "onednn"}, "exact": {"float32": True},
    }  # fmt: skip
    return CPUBackend(**{**found, **changes})


def test_a_product_that_depends_on_the_batch_is_a_problem() -> None:
    assert backend().problems() == []
    exact = {"float32": True, "bfloat16": False}
    assert backend(exact=exact).problems() == ["projections in bfloat16 depend on the batch"]
    (problem,) = backend(exact={"float32": False}, onednn=False).problems()
    assert problem == "projections in float32 depend on the batch: PyTorch is built without oneDNN"


def test_other_kernels_than_the_exact_ones_are_a_problem() -> None:
    (problem,) = backend(kernels="reference").problems()
    assert problem == "OSTINATO_KERNELS chooses reference kernels, which are not bit-exact in every batch"


class SummedTwoWays:
    """A projection that adds up in another order where there are few rows."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        y = x @ self._weight.T
        return y if x.shape[0] > 5 else y * (1 + 2**-20)


def test_rows_that_are_not_exact_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rows_are_exact(torch.float32)
    monkeypatch.setattr(backends, "Linear", SummedTwoWays)
    assert not rows_are_exact(torch.float32)


@pytest.mark.parametrize(
    ("built", "available", "reason"),
    [(None, False, "built without CUDA"), ("13.0", False, "no GPU is visible"), ("13.0", True, None)],
)
def test_why_there_is_no_gpu(
    built: str | None, available: bool, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    found = why_no_cuda()
    assert (found is None) is (reason is None)
    assert reason is None or (found is not None and reason in found)


def test_gpus_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = [
        SimpleNamespace(name="Card A", major=9, minor=0, total_memory=80 * 2**30),
        SimpleNamespace(name="Card B", major=12, minor=1, total_memory=2**30),
    ]
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "get_device_properties", cards.__getitem__)
    found = find_backends()
    assert found.cuda_missing is None
    assert found.devices == (CUDADevice("Card A", "9.0", 80 * 2**30), CUDADevice("Card B", "12.1", 2**30))


def test_triton_may_be_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    found = find_backends().triton
    assert found.version is None
    assert found.missing is not None
    assert "triton" in found.missing
