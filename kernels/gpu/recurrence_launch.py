"""A kernel launch as a value: run it on a GPU, or describe it to the compiler where there is none."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from ostinato.kernels.gpu.compile import CompileCase

_POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
_ALIGNED = 16  # what Triton knows of addresses (bytes) and of numbers is whether this divides them


@dataclass(frozen=True)
class Launch:
    """A kernel with all its arguments: tensors, numbers, named tuples of these, None; constants by their names."""

    kernel: Any  # a triton.JITFunction, which has no annotations
    grid: tuple[int, int, int]
    arguments: dict[str, Any]
    num_warps: int
    num_stages: int

    def run(self) -> None:
        """Launches it on the current stream."""
        if 0 not in self.grid:
            self.kernel[self.grid](
                **self.arguments, num_warps=self.num_warps, num_stages=self.num_stages, enable_fp_fusion=True
            )

    def case(self, name: str) -> CompileCase:
        """The same for the compiler. Tensors may be on the meta device; a real one is taken to be aligned."""
        case = CompileCase(name, self.kernel, {}, {}, self.num_warps, self.num_stages)
        for index, parameter in enumerate(self.kernel.params):
            value = self.arguments[parameter.name]
            if parameter.is_constexpr:
                case.signature[parameter.name] = "constexpr"
                case.constexprs[parameter.name] = value
                continue
            case.signature[parameter.name] = _typed(value)
            for path, leaf in _leaves(value, (index,)):
                if _typed(leaf) == "constexpr":
                    case.constexprs[path] = leaf
                elif isinstance(leaf, Tensor) or leaf % _ALIGNED == 0:
                    case.attrs[path] = [["tt.divisibility", _ALIGNED]]
        return case


def _typed(value: Any) -> Any:
    """Types by path, as a launch finds them: None and the number 1 are constants."""
    if isinstance(value, tuple):
        parts = [_typed(part) for part in value]
        return type(value)(*parts)
    if isinstance(value, Tensor):
        return _POINTERS[value.dtype]
    if isinstance(value, float):
        return "fp32"
    return "constexpr" if value is None or value == 1 else "i32"


def _leaves(value: Any, path: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], Any]]:
    if isinstance(value, tuple):
        for index, part in enumerate(value):
            yield from _leaves(part, (*path, index))
    elif not isinstance(value, float):
        yield path, value


def padded(size: int, least: int = 1) -> int:
    """The power of two that holds `size`, at least `least`: a tile's extent."""
    return max(least, int(triton.next_power_of_2(size)))
