"""Every Triton kernel, compiled without a GPU, needs no more of one than the committed table says."""

import importlib
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ostinato.kernels import gpu
from tests.kernels.gpu.resources import TABLE, Figures, exceeded

ROOT = Path(__file__).parents[3]
ADVICE = "if that is meant, `python -m tests.kernels.gpu.resources --write` renews the table"


def resources(*arguments: str) -> Any:
    """What the script says, in a process of its own: kernels for the interpreter cannot be compiled."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.kernels.gpu.resources", *arguments]
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


@pytest.mark.long(minutes=3)
@pytest.mark.timeout(600)
def test_no_kernel_needs_more_than_the_table_says() -> None:
    assert not list(exceeded(resources(), json.loads(TABLE.read_text()))), ADVICE


def test_every_kernel_is_in_the_table() -> None:
    modules = [importlib.import_module(name) for _, name, _ in pkgutil.iter_modules(gpu.__path__, f"{gpu.__name__}.")]
    kernels = {name for module in modules for name in vars(module) if name.endswith("_kernel")}
    assert kernels == set(resources("--kernels"))


GOOD: Figures = {"a @ sm_80": {"registers": 10, "spills": 0, "shared": 8}}


@pytest.mark.parametrize(
    ("found", "allowed", "complaint"),
    [
        ({"a @ sm_80": {"registers": 11, "spills": 0, "shared": 8}}, GOOD, "11 registers, 10 allowed"),
        ({"a @ sm_80": {"registers": 10, "spills": 0, "shared": 9}}, GOOD, "9 shared, 8 allowed"),
        ({"a @ sm_80": {"registers": 10, "spills": 4, "shared": 8}},) * 2 + ("4 spills, 0 allowed",),
        ({}, GOOD, "only in the table"),
        (GOOD, {}, "only in the kernels"),
    ],
)
def test_what_is_worse_is_said(found: Figures, allowed: Figures, complaint: str) -> None:
    (said,) = exceeded(found, allowed)
    assert complaint in said


def test_what_is_better_is_accepted() -> None:
    assert not list(exceeded({"a @ sm_80": {"registers": 9, "spills": 0, "shared": 0}}, GOOD))
