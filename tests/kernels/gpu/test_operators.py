"""The Triton back end as PyTorch's dispatcher sees it."""

import importlib
import inspect
import pkgutil

import pytest
import torch

import ostinato.kernels
from ostinato.kernels import dispatch, gpu

for _, name, package in pkgutil.iter_modules(ostinato.kernels.__path__, "ostinato.kernels."):
    if not package:
        importlib.import_module(name)


@pytest.mark.parametrize("name", sorted(gpu.OPERATORS))
def test_a_launcher_takes_what_its_operator_is_given(name: str) -> None:
    schema = getattr(torch.ops.ostinato, name).default._schema
    parameters = inspect.signature(gpu.OPERATORS[name]).parameters.values()
    expected = [(argument.name, argument.kwarg_only) for argument in schema.arguments]
    assert [(p.name, p.kind is inspect.Parameter.KEYWORD_ONLY) for p in parameters] == expected


def test_every_operator_has_a_launcher() -> None:
    assert gpu.OPERATORS.keys() == dispatch._references.keys()


def test_every_launcher_is_registered_for_cuda() -> None:
    dispatch.backend.cache_clear()
    dispatch.backend("cuda")
    for name in gpu.OPERATORS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"ostinato::{name}", "CUDA")
