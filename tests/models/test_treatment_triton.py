"""Treated reading on the Triton kernels, in Triton's interpreter, against the C++ ones."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.models.running import relative_error
from tests.models.treated_run import treated_states

ROOT = Path(__file__).parents[2]
BOUND = 1e-4
RUN = ["GLAForCausalLM", "Mamba2ForCausalLM", "MambaForCausalLM", "RetNetForCausalLM", "Rwkv5ForCausalLM"]

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None and "CI" not in os.environ,
        reason="there is no Triton here: `pip install triton` (Linux) runs its kernels in its interpreter",
    ),
]


@functools.cache
def interpreted() -> dict[str, Tensor]:
    """All states, computed by another process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "states.safetensors"
        environment = {**os.environ, "OSTINATO_KERNELS": "triton", "TRITON_INTERPRET": "1"}
        command = [sys.executable, "-m", "tests.models.treated_run", str(path), *RUN]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return load_file(path)


@pytest.mark.long
@pytest.mark.parametrize("architecture", RUN)
def test_treated_states_are_those_of_the_other_kernels(architecture: str) -> None:
    for name, wanted in treated_states(architecture).items():
        found = interpreted()[f"{architecture}/{name}"]
        if wanted.is_floating_point() and wanted.any():
            assert relative_error(found, wanted) <= BOUND, name
        else:
            assert found.equal(wanted), name
