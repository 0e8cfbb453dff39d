"""`scripts/bench/random_checkpoint.py`: it writes checkpoints that load, in the shapes that it says."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from ostinato.models.checkpoint import open_checkpoint
from ostinato.models.registry import load_model
from tests.models.running import Reader

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench" / "random_checkpoint.py"
PARAMETERS = {"mamba-130m": 129e6, "mamba2-370m": 368e6, "rwkv7-0.4b": 450e6, "gla-340m": 374e6}


def write(name: str, folder: Path) -> None:
    """As users run it: from anywhere."""
    command = [sys.executable, str(SCRIPT), name, str(folder)]
    done = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", PARAMETERS)
def test_it_can_be_served(name: str) -> None:
    """And its activations stay finite in bf16."""
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path, which outlives the run: these are large
        path = Path(folder) / name
        write(name, path)
        size = (path / "model.safetensors").stat().st_size
        assert size == pytest.approx(2 * PARAMETERS[name], rel=0.01)
        model = load_model(open_checkpoint(path))
    logits = Reader(model).read(range(1, 20))
    assert torch.isfinite(logits).all()
    assert 0.5 < float(logits.std()) < 10


def test_other_names_are_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "gpt", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "gla-340m" in done.stderr
