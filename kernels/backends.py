"""Which back ends can be used here, and why the others cannot. How fast they are: `ostinato.kernels.roofline`."""

import importlib
from dataclasses import dataclass

import torch

from ostinato.kernels import native
from ostinato.kernels.dispatch import VARIABLE, backend, product, supported_dtypes
from ostinato.kernels.linear import Linear

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class CPUBackend:
    """What runs on the CPU. `operators_missing` says why the C++ operators are not there, None if they are."""

    instruction_set: str  # that ATen dispatches to, and the C++ operators are compiled for
    amx: bool  # whether the processor multiplies bf16 in tiles
    threads: int
    openmp: bool
    onednn: bool
    compiler: str | None
    kernels: str  # the back end in use: native (C++), reference or triton
    kernel_cache: str
    library: str | None
    operators_missing: str | None
    products: dict[str, str]  # by dtype: how projections are computed, see `ostinato.kernels.linear`
    exact: dict[str, bool]  # by dtype: whether the rows of a projection are computed each by itself

    def problems(self) -> list[str]:
        """Why answers here are not the same bits in every batch; nothing if they are."""
        found = []
        if self.operators_missing is not None:
            reason = self.operators_missing.splitlines()[0]  # a compiler has a lot to say
            found.append(f"the reference kernels run instead of the C++ operators: {reason}")
        elif self.kernels != "native":
            found.append(f"{VARIABLE} chooses {self.kernels} kernels, which are not bit-exact in every batch")
        found += [
            f"projections in {dtype} depend on the batch" + ("" if self.onednn else ": PyTorch is built without oneDNN")
            for dtype, exact in self.exact.items()
            if not exact
        ]
        return found


@dataclass(frozen=True, slots=True)
class CUDADevice:
    """A GPU. memory: bytes."""

    name: str
    capability: str
    memory: int


@dataclass(frozen=True, slots=True)
class Module:
    """A package that may be absent: its version, or why it cannot be used."""

    version: str | None
    missing: str | None


@dataclass(frozen=True, slots=True)
class Backends:
    """All of them. `cuda_missing` says why there are no `devices`."""

    torch: str
    cpu: CPUBackend
    devices: tuple[CUDADevice, ...]
    cuda_missing: str | None
    triton: Module


def find_backends() -> Backends:
    """Compiles the C++ operators if they are not there yet."""
    missing = why_no_cuda()
    return Backends(
        torch=torch.__version__,
        cpu=_find_cpu(),
        devices=() if missing else tuple(_device(i) for i in range(torch.cuda.device_count())),
        cuda_missing=missing,
        triton=_find_triton(),
    )


def _find_cpu() -> CPUBackend:
    missing = native.load()
    dtypes = {str(dtype).removeprefix("torch."): dtype for dtype in supported_dtypes(CPU)}
    return CPUBackend(
        instruction_set=native.instruction_set(),
        amx=torch.cpu._is_amx_tile_supported(),
        threads=torch.get_num_threads(),
        openmp=torch.backends.openmp.is_available(),
        onednn=torch.backends.mkldnn.is_available(),
        compiler=native.compiler(),
        kernels=backend("cpu"),
        kernel_cache=str(native.cache_folder()),
        library=None if missing else native.library_path().name,
        operators_missing=missing,
        products={name: product(torch.empty(1, 1, dtype=dtype)) for name, dtype in dtypes.items()},
        exact={name: rows_are_exact(dtype) for name, dtype in dtypes.items()},
    )


@torch.inference_mode()
def rows_are_exact(dtype: torch.dtype) -> bool:
    """Whether rows of a projection have the same bits alone, among a few and among 64."""
    generator = torch.Generator().manual_seed(0)
    projection = Linear(torch.randn(2048, 2048, generator=generator).to(dtype))
    x = torch.randn(64, 2048, generator=generator).to(dtype)
    y = projection(x)
    return all(torch.equal(projection(x[start : start + rows]), y[start : start + rows]) for start, rows in PROBES)


PROBES = ((0, 1), (63, 1), (17, 2), (3, 5), (20, 33))  # first row, rows


def why_no_cuda() -> str | None:
    """None if there is a GPU that PyTorch can use."""
    if torch.version.cuda is None:
        return f"this PyTorch ({torch.__version__}) is built without CUDA"
    if not torch.cuda.is_available():
        return "no GPU is visible, or its driver cannot be used"
    return None


def _device(index: int) -> CUDADevice:
    properties = torch.cuda.get_device_properties(index)
    return CUDADevice(properties.name, f"{properties.major}.{properties.minor}", properties.total_memory)


def _find_triton() -> Module:
    try:
        return Module(importlib.import_module("triton").__version__, None)
    except ImportError as error:
        return Module(None, str(error))
