"""Builds and loads the C++ operators of `kernels/cpu`.

They are compiled on first use, for the CPU at hand, and kept under the user's cache folder in a file whose name holds
the hash of the sources, the flags and the PyTorch version: a stale library is never loaded. The finished file is moved
into place in one step, so a compilation that was killed leaves nothing half-made behind. Of several processes that need
it at once, one compiles and the others wait.
"""

import contextlib
import functools
import hashlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import ninja
import torch
from filelock import FileLock
from torch.utils import cpp_extension

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "cpu"

# ATen's vector classes are chosen by macro; the flags are those that ATen's own kernels of that level are built with.
_VECTOR_FLAGS = {
    "AVX512": [
        "-mavx512f",
        "-mavx512dq",
        "-mavx512vl",
        "-mavx512bw",
        "-mfma",
        "-mf16c",
        "-DCPU_CAPABILITY_AVX512",
    ],
    "AVX2": ["-mavx2", "-mfma", "-mf16c", "-DCPU_CAPABILITY_AVX2"],
}

# ATen's parallel_for is OpenMP where PyTorch is built with it; the runtime is the one that PyTorch has loaded.
_OPENMP = ("-fopenmp",) if torch.backends.openmp.is_available() and sys.platform == "linux" else ()


def instruction_set() -> str:
    """The level that ATen dispatches to here: AVX512, AVX2, or DEFAULT (which is NEON on ARM)."""
    level = torch.backends.cpu.get_cpu_capability()
    return level if level in _VECTOR_FLAGS else "DEFAULT"


def cache_folder() -> Path:
    """`OSTINATO_CACHE`, or `ostinato` in the user's cache folder (XDG base directory specification)."""
    if folder := os.environ.get("OSTINATO_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ostinato"


def compiler() -> str | None:
    """The C++ compiler that would be used: `CXX`, or `c++`."""
    return shutil.which(os.environ.get("CXX", "c++"))


def _flags() -> list[str]:
    level = instruction_set()
    # Contraction into fused multiply-adds is written out where it is wanted: the compiler must not choose.
    rounding = ["-mavx512bf16"] if level == "AVX512" and torch.cpu._is_avx512_bf16_supported() else []
    return ["-O3", "-ffp-contract=off", f"-DCPU_CAPABILITY={level}", *_OPENMP, *_VECTOR_FLAGS.get(level, []), *rounding]


def library_path() -> Path:
    """Where the library for these sources, flags and PyTorch is, or will be."""
    digest = hashlib.sha256(" ".join([torch.__version__, *_flags()]).encode())
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return cache_folder() / f"cpu-{digest.hexdigest()[:16]}.so"


def _compile(library: Path) -> None:
    """Raises RuntimeError or OSError."""
    with tempfile.TemporaryDirectory(dir=library.parent) as folder, _ninja_on_path():
        built = cpp_extension.load(
            name=library.stem.replace("-", "_"),
            sources=[str(path) for path in sorted(SOURCES.glob("*.cpp"))],
            extra_cflags=_flags(),
            extra_ldflags=list(_OPENMP),  # PyTorch appends to the list that it is given
            build_directory=folder,
            is_python_module=False,
            is_standalone=False,
        )
        shutil.copy(built or next(Path(folder).glob("*.so")), folder + "/finished")
        os.replace(folder + "/finished", library)


@contextlib.contextmanager
def _ninja_on_path() -> Iterator[None]:
    """PyTorch calls ninja by name, but a virtual environment that is not activated is not on the path."""
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join([ninja.BIN_DIR, before])
    try:
        yield
    finally:
        os.environ["PATH"] = before


def _load_cached(library: Path) -> bool:
    """Whether the library was there and whole; a damaged one is removed."""
    if not library.exists():
        return False
    try:
        torch.ops.load_library(library)
    except OSError:
        library.unlink(missing_ok=True)
        return False
    return True


@functools.cache
def load() -> str | None:
    """Registers the operators under `torch.ops.ostinato`. Returns None, or why they are not available."""
    library = library_path()
    if _load_cached(library):
        return None
    if compiler() is None:
        return "no C++ compiler found (install g++ or clang)"
    try:
        _compile_once(library)
    except (RuntimeError, OSError) as error:
        return f"compiling the CPU operators failed: {_first_errors(str(error))}"
    return None


def _compile_once(library: Path) -> None:
    """Compiles, or waits for another process to do so, and loads. Raises RuntimeError or OSError."""
    library.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(library.parent / "lock"):
        if not _load_cached(library):
            logger.info("compiling the CPU operators (once, about half a minute)")
            _compile(library)


def _first_errors(output: str) -> str:
    """A compiler's output without the pages around what it complains of."""
    lines = [line.strip() for line in output.splitlines()]
    return "; ".join([line for line in lines if "error:" in line][:3] or lines[:1])
