"""The ways we know in which a model's files can be wrong, with the error that names file and fault."""

from __future__ import annotations

import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch

from ostinato.models.checkpoint import open_checkpoint
from ostinato.models.errors import CheckpointError
from ostinato.models.registry import load_model
from tests.models import bad_files as bad
from tests.models.bad_cases import BIN, FOLDER_CASES, PTH, BadCase
from tests.models.bad_rwkv import RWKV_CASES
from tests.models.bad_tensors import LOADING_CASES as COMMON_LOADING_CASES
from tests.models.bad_weights import WEIGHT_CASES

GOLDENS = Path(__file__).parent.parent / "goldens"
OPENING_CASES = [*FOLDER_CASES, *WEIGHT_CASES]
LOADING_CASES = [*COMMON_LOADING_CASES, *RWKV_CASES]


def writable_golden(name: str, parent: Path) -> Path:
    """A copy of a golden folder that can be spoiled."""
    folder = parent / name
    shutil.copytree(GOLDENS / name, folder)
    for file in folder.iterdir():
        file.chmod(0o644)
    return folder


def check(case: BadCase, error: CheckpointError) -> None:
    assert re.search(case.message, str(error)), f"{error!s} does not match {case.message}"
    assert type(error) is case.kind


@pytest.mark.parametrize("case", OPENING_CASES, ids=lambda case: case.name)
def test_opening_says_which_file_and_what(case: BadCase, tmp_path: Path) -> None:
    model = case.build(writable_golden(case.golden, tmp_path))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(model)
    check(case, caught.value)


@pytest.mark.parametrize("case", LOADING_CASES, ids=lambda case: case.name)
def test_loading_says_which_tensor_or_key_and_what(case: BadCase, tmp_path: Path) -> None:
    model = case.build(writable_golden(case.golden, tmp_path))
    with pytest.raises(CheckpointError) as caught:
        load_model(open_checkpoint(model), device="cpu", dtype=torch.float32)
    check(case, caught.value)


def unpickle_carelessly(file: Path, zipped: bool) -> None:
    if zipped:
        torch.load(file, weights_only=False)
    else:
        pickle.loads(file.read_bytes())


@pytest.mark.parametrize("name", [BIN, PTH])
@pytest.mark.parametrize("zipped", [True, False], ids=["torch_zip", "raw_pickle"])
def test_code_in_a_pickle_is_refused_and_never_runs(name: str, zipped: bool, tmp_path: Path) -> None:
    folder = writable_golden("mamba_orig" if name == BIN else "rwkv7_pth", tmp_path)
    trace = tmp_path / "it-ran"
    payload = {"emb.weight": bad.RunsCommand(trace)}
    build = bad.saved(name, lambda tensors: payload) if zipped else bad.raw_pickle(name, payload)
    with pytest.raises(CheckpointError, match=re.escape(name)):
        open_checkpoint(build(folder))
    assert not trace.exists()
    unpickle_carelessly(folder / name, zipped)
    assert trace.exists(), "the payload does nothing even when it is let run, so the test proves nothing"


def test_case_names_are_unique() -> None:
    names = [case.name for case in (*OPENING_CASES, *LOADING_CASES)]
    assert len(set(names)) == len(names)
