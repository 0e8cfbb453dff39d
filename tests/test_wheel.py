"""The built wheel is complete: unpacked far from the checkout, it serves the demo model."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GENERATE = """
import ostinato.engine.llm as llm, ostinato.server.app as app
from ostinato.engine.sampling_params import SamplingParams
from ostinato.models import demo
for module in (llm, app, demo):
    assert module.__file__.startswith({folder!r}), module.__file__
for name in demo.NAMES:
    model = llm.LLM(str(demo.path(name)), max_batch=1)
    (completion,) = model.generate(["In the beginning"], SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True))
    assert len(completion.token_ids) == 8, completion
print("complete")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(folder), str(ROOT)], check=True, timeout=240)
    (path,) = folder.glob("ostinato-*.whl")
    return path


def test_only_what_belongs_into_it_is_in_it(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[1] for name in names if name.startswith("ostinato/")}
    assert tops == {"engine", "kernels", "models", "server"}
    assert {name.split("/")[0] for name in names} == {
        "ostinato",
        next(n for n in names if "dist-info" in n).split("/")[0],
    }
    sources = {path.name for path in (ROOT / "kernels" / "cpu").iterdir()}
    assert sources <= {Path(name).name for name in names if name.startswith("ostinato/kernels/cpu/")}


@pytest.mark.long(minutes=1)
def test_it_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    script = GENERATE.format(folder=str(tmp_path))
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert run.stdout.strip().endswith("complete"), run.stderr
