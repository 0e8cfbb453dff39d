"""Which back end runs: by default, as OSTINATO_KERNELS says, or why it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from ostinato.engine.errors import RequestError
from ostinato.engine.llm import LLM
from ostinato.kernels import dispatch, native
from ostinato.server.cli.main import app

ROOT = Path(__file__).parents[2]
GLA = ROOT / "tests" / "goldens" / "gla"


@pytest.fixture
def asked_anew() -> Iterator[None]:
    """The choice is made once for each device; here it is made again, and forgotten afterwards."""
    dispatch.backend.cache_clear()
    yield
    dispatch.backend.cache_clear()


def in_another_process(program: str, **environment: str) -> str:
    """What `program` prints, with Triton imported in that process or not at all."""
    command = [sys.executable, "-W", "error", "-c", program]
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, cwd=ROOT, env=kept | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_cpp_is_the_default_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    assert dispatch._choose(dispatch._wanted(), "cpu") == "native"
    assert dispatch._choose(dispatch._wanted(), "cuda") == "triton"


def test_without_cpp_the_reference_is_the_default_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(native, "load", lambda: "no compiler")
    assert dispatch._choose(None, "cpu") == "reference"
    assert "not bit-exact reference kernels are in use on the CPU: no compiler" in caplog.text


@pytest.mark.parametrize(
    ("value", "device", "message"),
    [
        ("cuda", "cpu", "OSTINATO_KERNELS must be one of auto, native, reference, triton, got 'cuda'"),
        ("native", "cpu", "OSTINATO_KERNELS=native is impossible: no compiler"),
        ("native", "cuda", "OSTINATO_KERNELS=native is C\\+\\+ for the CPU"),
    ],
)
@pytest.mark.usefixtures("asked_anew")
def test_what_cannot_run_is_an_error(monkeypatch: pytest.MonkeyPatch, value: str, device: str, message: str) -> None:
    monkeypatch.setattr(native, "load", lambda: "no compiler")
    monkeypatch.setenv(dispatch.VARIABLE, value)
    with pytest.raises(dispatch.BackendError, match=message):
        dispatch.backend(device)


@pytest.mark.usefixtures("asked_anew")
def test_the_command_line_says_it_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(dispatch.VARIABLE, "fast")
    result = CliRunner().invoke(app, ["generate", str(GLA), "-p", "x"])
    assert result.exit_code == 2
    assert result.stderr.strip().startswith("error: OSTINATO_KERNELS must be one of auto, native, reference, triton")
    assert "\n" not in result.stderr.strip()


def test_batch_invariance_is_always_there_in_cpp() -> None:
    for dtype in dispatch.supported_dtypes(torch.device("cpu")):
        for asked in (False, True):
            assert dispatch.batch_invariant(torch.device("cpu"), dtype, asked)
    for asked in (False, True):
        assert LLM(str(GLA), max_batch=1, batch_invariant=asked).info.batch_invariant


def test_batch_invariance_cannot_be_had_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "backend", lambda device: "reference")
    assert not dispatch.batch_invariant(torch.device("cpu"), torch.float32, True)
    with pytest.raises(RequestError, match="batch_invariant cannot be had: reference kernels run on cpu"):
        LLM(str(GLA), max_batch=1, batch_invariant=True)


def test_models_are_right_on_the_reference_kernels_too(tmp_path: Path) -> None:
    """All goldens, in a process of its own. Were the C++ used there, it would be compiled into that cache first."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/models/test_goldens.py"]
    environment = os.environ | {dispatch.VARIABLE: "reference", "OSTINATO_CACHE": str(tmp_path)}
    selected = [*command, "-k", "test_logits_in_fp32"]
    done = subprocess.run(selected, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert not list(tmp_path.iterdir())


def test_cuda_without_triton_names_the_remedy() -> None:
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "from ostinato.kernels import dispatch\n"
        "try: dispatch.backend('cuda')\n"
        "except dispatch.BackendError as error: print(error)"
    )
    said = in_another_process(program)
    assert "the kernels for cuda need Triton, which cannot be imported" in said
    assert "pip install triton" in said


def test_triton_on_the_cpu_needs_its_interpreter() -> None:
    program = (
        "from ostinato.kernels import dispatch\n"
        "try: dispatch.backend('cpu')\n"
        "except dispatch.BackendError as error: print(error)"
    )
    assert "set TRITON_INTERPRET=1 too" in in_another_process(program, OSTINATO_KERNELS="triton")


TRITON = """
import torch
from ostinato.kernels import dispatch, gpu, rows, rwkv7
gpu.OPERATORS.pop("silu")
used = []
gpu.OPERATORS["sigmoid"] = lambda x: used.append("sigmoid") or torch.sigmoid(x)
x = torch.ones(3)
rows.sigmoid(x)
from ostinato.kernels import shift
assert torch._C._dispatch_has_kernel_for_dispatch_key("ostinato::token_shift", "CPU")
assert dispatch.supported_dtypes(x.device) == (torch.float32,)
assert dispatch.product(x) == "plain"
assert not dispatch.can_capture(x.device)
for asked in (True, False):
    assert dispatch.batch_invariant(x.device, x.dtype, asked) is asked
    with dispatch.running(x.device, batch_invariant=asked, dtype=torch.bfloat16):
        assert gpu.mode.batch_invariant() is asked
        assert gpu.mode.model_dtype() == torch.bfloat16
assert gpu.mode.model_dtype() == torch.float32
assert used == ["sigmoid"]
try: rows.silu(x)
except dispatch.BackendError as error: print(error)
"""


def test_triton_runs_where_it_is_asked_for_and_refuses_what_it_has_no_kernel_for() -> None:
    """Operators that are declared before the back end is chosen, and after."""
    said = in_another_process(TRITON, OSTINATO_KERNELS="triton", TRITON_INTERPRET="1")
    assert "there is no Triton kernel for 'silu': OSTINATO_KERNELS=reference runs without" in said
