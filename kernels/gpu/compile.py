"""What a kernel is compiled for: the cases that are checked without a GPU."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class CompileCase:
    """One kernel at one model's shapes, in the terms of `triton.compiler.ASTSource`.

    signature: the type of each parameter ("*bf16", "i32", "constexpr", a tuple of these for a tuple); constexprs: the
    values of the constants, by parameter, or by path for those in a tuple; attrs: what is known to be divisible by 16,
    by path, as at a launch. Numbers of warps and pipeline stages as launched.
    """

    name: str
    kernel: Any  # a triton.JITFunction, which has no annotations
    signature: dict[str, Any]  # nested tuples of str have no finite type
    constexprs: dict[str | tuple[int, ...], object]
    num_warps: int
    num_stages: int
    attrs: dict[tuple[int, ...], list[list[object]]] = field(default_factory=dict)
