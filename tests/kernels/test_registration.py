"""Operators as PyTorch knows them: schemas, what they update in place, shapes of their outputs for compilers."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ostinato.kernels import dispatch

gpu_cases = pytest.importorskip("ostinato.kernels.gpu.cases", reason="install the `test` extra for triton")
from ostinato.kernels.gpu.calls import Draw  # noqa: E402  (after the check that triton is there)
from ostinato.kernels.packed import Packed  # noqa: E402

CPU = torch.device("cpu")
each_case = pytest.mark.parametrize("case", gpu_cases.CASES, ids=lambda case: case.name)


def arguments_of(case: Any, dtype: torch.dtype) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The operator, and what a small call of it passes: two sequences, of which one comes from another's slot."""
    call = case.call(Draw.of(0, dtype, CPU), Packed.of([2, 0], [3, 1], dst=[2, 1]), 4, small=True)
    passed: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def keep(*positional: Any, **named: Any) -> Tensor:
        passed.append((positional, named))
        return torch.empty(0, 0, 0, 0)

    call.run(keep)
    operator = getattr(dispatch.operators(torch.empty(0)), case.operator).default
    return operator, *passed[0]


def copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def test_every_operator_is_here() -> None:
    assert {case.operator for case in gpu_cases.CASES} == set(dispatch._references)


@each_case
def test_opcheck(case: Any) -> None:
    operator, positional, named = arguments_of(case, torch.float32)
    torch.library.opcheck(operator, positional, named)


@each_case
def test_compiled_equals_eager(case: Any) -> None:
    """With the compiler's front end, which is what meets our declarations, and without its code generator."""
    operator, positional, named = arguments_of(case, torch.float32)
    torch.compiler.reset()
    compiled = torch.compile(lambda *a, **n: operator(*a, **n), fullgraph=True, backend="aot_eager")
    results = []
    for function in (operator, compiled):
        own = [copied(value) for value in positional]
        outputs = function(*own, **named)
        updated = [value for value in own if isinstance(value, Tensor)]
        results.append([*([outputs] if isinstance(outputs, Tensor) else outputs), *updated])
    assert all(torch.equal(found, expected) for found, expected in zip(*results, strict=True))
