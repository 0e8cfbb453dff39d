"""What every kernel needs of a GPU, found by compiling it without one.

A module of `ostinato.kernels.gpu` that has kernels offers `compile_cases()`: those kernels at real models' shapes.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ostinato.kernels.gpu.launch import Launch

CAPABILITIES = (80, 90, 100)  # A100, H100, B200


@dataclass(frozen=True)
class CompileCase:
    """A kernel and how it is launched.

    signature: the types of its run-time arguments by name, in Triton's notation ("*fp32", "i32", tuples of these for a
    tuple); constexprs: its other arguments, by name, or by path within a tuple; attrs: what is divisible by 16, by
    path, as Triton finds it at a launch: if empty, every pointer is, as those of torch's allocations are.
    """

    name: str
    kernel: Any  # a function under triton.jit, which has no types
    signature: dict[str, Any]
    constexprs: dict[Any, object]
    num_warps: int
    num_stages: int
    attrs: dict[tuple[int, ...], list[list[object]]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, name: str, kernel: object, signature: dict[str, str], launch: Launch, absent: Iterable[str] = ()
    ) -> "CompileCase":
        """A case that is launched as `launch` says, with None for the pointers that are `absent`."""
        constexprs = {**launch.constexprs, **dict.fromkeys(absent)}
        return cls(name, kernel, signature, constexprs, launch.num_warps, launch.num_stages)


@dataclass(frozen=True)
class Resources:
    """registers: per thread; spills: bytes of local memory per thread; shared: bytes of shared memory per program."""

    registers: int
    spills: int
    shared: int


def compile_case(case: CompileCase, capability: int) -> Resources:
    """Compiles for compute capability `capability / 10`, and says what the kernel needs there.

    No GPU is needed, but kernels that were imported without TRITON_INTERPRET are. Raises RuntimeError: the machine
    code cannot be read.
    """
    arguments = case.kernel.arg_names
    signature = {name: case.signature.get(name, "constexpr") for name in arguments}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(arguments) if "*" in signature[name]}
    source = ASTSource(case.kernel, signature, case.constexprs, case.attrs or aligned)
    launch = Launch({}, case.num_warps, case.num_stages)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=launch.arguments())
    usage = _usage(compiled.asm["cubin"])
    return Resources(usage["REG"], usage["STACK"] + usage["LOCAL"], compiled.metadata.shared)


def _usage(cubin: bytes) -> dict[str, int]:
    """What cuobjdump, which comes with Triton, says of a kernel's machine code: registers, stack, local memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    usage = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", answer.stdout)}
    if len(usage) != 3:
        raise RuntimeError(f"{' '.join(command)} gave {answer.returncode}: {answer.stdout}{answer.stderr}")
    return usage
