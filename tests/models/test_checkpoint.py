"""Reading good checkpoints: every layout gives the tensors that the format's own library reads."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ostinato.models.checkpoint import Checkpoint, open_checkpoint
from ostinato.models.errors import CheckpointError

GOLDENS = Path(__file__).parent.parent / "goldens"
RWKV_FILE = "rwkv7-g1-tiny-ctx4096.pth"
GOLDEN_LAYOUTS = [
    ("mamba_hf", "model.safetensors", "MambaForCausalLM", torch.float32),
    ("mamba_orig", "pytorch_model.bin", "mamba_ssm", torch.float16),
    ("mamba2_orig", "pytorch_model.bin", "mamba2_ssm", torch.float32),
    ("rwkv7_fla", "model.safetensors", "RWKV7ForCausalLM", torch.bfloat16),
    (f"rwkv7_pth/{RWKV_FILE}", f"../{RWKV_FILE}", "rwkv7_pth", torch.bfloat16),
    ("rwkv7_pth", RWKV_FILE, "rwkv7_pth", torch.bfloat16),
    ("gla", "model.safetensors", "GLAForCausalLM", torch.bfloat16),
]
Tensors = dict[str, torch.Tensor]


def read_whole(file: Path) -> Tensors:
    """All tensors of a file, by the format's own library."""
    if file.suffix == ".safetensors":
        return load_file(file)
    tensors: Tensors = torch.load(file, weights_only=True)
    return tensors


def take_all(checkpoint: Checkpoint) -> Tensors:
    with checkpoint:
        return {name: checkpoint.take(name, checkpoint.shape(name)) for name in checkpoint.names}


def assert_same(taken: Tensors, expected: Tensors) -> None:
    assert taken.keys() == expected.keys()
    for name, tensor in expected.items():
        assert taken[name].dtype == tensor.dtype, name
        assert torch.equal(taken[name], tensor), name


def make_folder(folder: Path, tensors: Tensors, file: str = "model.safetensors") -> Path:
    """A Mamba folder that holds just these tensors."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"architectures": ["MambaForCausalLM"]}')
    if file.endswith(".bin"):
        torch.save(tensors, folder / file)
    else:
        save_file(tensors, folder / file)
    return folder


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    """A folder with the tensors `a` [2, 3], `b.x` [4] and `b.y` [4], all fp32: 24 + 16 + 16 bytes."""
    return make_folder(tmp_path / "numbers", {"a": torch.ones(2, 3), "b.x": torch.ones(4), "b.y": torch.zeros(4)})


@pytest.mark.parametrize(("model", "file", "architecture", "dtype"), GOLDEN_LAYOUTS, ids=lambda value: str(value))
def test_golden_layouts(model: str, file: str, architecture: str, dtype: torch.dtype) -> None:
    expected = read_whole((GOLDENS / model / file).resolve())
    checkpoint = open_checkpoint(GOLDENS / model)
    assert checkpoint.architecture == architecture
    assert checkpoint.dtype == dtype
    assert checkpoint.num_bytes == sum(tensor.nbytes for tensor in expected.values())
    assert_same(take_all(checkpoint), expected)


def test_what_a_folder_tells() -> None:
    checkpoint = open_checkpoint(str(GOLDENS / "mamba_hf"))
    assert checkpoint.path == checkpoint.folder == GOLDENS / "mamba_hf"
    assert checkpoint.config == json.loads((GOLDENS / "mamba_hf" / "config.json").read_text())
    assert checkpoint.generation_config["eos_token_id"] == 0
    checkpoint.release()


def test_what_other_layouts_tell() -> None:
    original, pth = (
        open_checkpoint(GOLDENS / "mamba_orig"),
        open_checkpoint(GOLDENS / "rwkv7_pth" / RWKV_FILE),
    )
    assert original.generation_config == {}
    assert (pth.path, pth.folder) == (GOLDENS / "rwkv7_pth" / RWKV_FILE, GOLDENS / "rwkv7_pth")
    assert (pth.config, pth.generation_config) == ({}, {})
    original.release()
    pth.release()


@pytest.mark.parametrize("single", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("shards", [1, 3])
def test_shards_are_one_checkpoint(single: str, shards: int, tmp_path: Path) -> None:
    expected = read_whole(GOLDENS / "gla" / "model.safetensors")
    stem, _, suffix = single.partition(".")
    files = [f"{stem}-{number:05d}-of-{shards:05d}.{suffix}" for number in range(1, shards + 1)]
    weight_map = {name: files[position % shards] for position, name in enumerate(expected)}
    for file in files:
        make_folder(tmp_path, {name: expected[name] for name in expected if weight_map[name] == file}, file)
    (tmp_path / f"{single}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    assert_same(take_all(open_checkpoint(tmp_path)), expected)


def test_safetensors_wins_over_bin(tmp_path: Path) -> None:
    make_folder(tmp_path, {"a": torch.zeros(2)}, "pytorch_model.bin")
    make_folder(tmp_path, {"a": torch.ones(2)})
    assert torch.equal(take_all(open_checkpoint(tmp_path))["a"], torch.ones(2))


def test_tied_parameters_of_a_module_are_read_as_plain_tensors(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    make_folder(tmp_path, {"a": weight, "b": weight}, "pytorch_model.bin")
    taken = take_all(open_checkpoint(tmp_path))
    assert_same(taken, {"a": torch.ones(2, 2), "b": torch.ones(2, 2)})
    assert not taken["a"].requires_grad


@pytest.mark.parametrize("form", ["%s", '{"__float__": "%s"}'], ids=["bare", "marked"])
def test_config_with_infinity(form: str, numbers: Path) -> None:
    values = f'"a": [0.0, {form % "Infinity"}], "b": {form % "NaN"}'
    (numbers / "config.json").write_text(f'{{"architectures": ["MambaForCausalLM"], {values}}}')
    checkpoint = open_checkpoint(numbers)
    assert checkpoint.config["a"] == [0.0, float("inf")]
    assert checkpoint.config["b"] != checkpoint.config["b"]
    checkpoint.release()


def test_relative_and_home_paths(numbers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(numbers.parent)
    monkeypatch.setenv("HOME", str(numbers.parent))
    for model in ("numbers", "./numbers", "~/numbers", "numbers/../numbers/"):
        open_checkpoint(model).release()


def test_an_existing_path_is_not_a_hub_id(numbers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (numbers.parent / "organisation").mkdir()
    shutil.move(numbers, numbers.parent / "organisation" / "name")
    monkeypatch.chdir(numbers.parent)
    open_checkpoint("organisation/name").release()


def test_dtype_is_that_of_most_elements(tmp_path: Path) -> None:
    tensors = {"many": torch.ones(10, dtype=torch.bfloat16), "a": torch.ones(4), "b": torch.ones(5)}
    checkpoint = open_checkpoint(make_folder(tmp_path, tensors))
    assert checkpoint.dtype == torch.bfloat16
    checkpoint.release()


def test_taking_consumes(numbers: Path) -> None:
    with open_checkpoint(numbers) as checkpoint:
        assert set(checkpoint.names) == {"a", "b.x", "b.y"}
        checkpoint.take("a", (2, 3))
        assert checkpoint.has("a")
        assert checkpoint.shape("a") == (2, 3)
        with pytest.raises(CheckpointError, match="tensor 'a' was taken before"):
            checkpoint.take("a", (2, 3))
        checkpoint.drop("b.x", "b.y")


def test_a_refused_tensor_is_not_consumed(numbers: Path) -> None:
    with open_checkpoint(numbers) as checkpoint:
        with pytest.raises(CheckpointError, match=r"'a' has shape \(2, 3\), but \(3, 2\) is expected"):
            checkpoint.take("a", (3, 2))
        checkpoint.take("a", (2, 3))
        checkpoint.drop("b.x", "b.y")


def test_number_of_dimensions(numbers: Path) -> None:
    checkpoint = open_checkpoint(numbers)
    assert checkpoint.shape("a", 2) == (2, 3)
    with pytest.raises(CheckpointError, match=r"'a' has shape \(2, 3\), expected 1 dimensions"):
        checkpoint.shape("a", 1)
    checkpoint.release()


def test_an_empty_dimension_gives_no_size(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_folder(tmp_path, {"a": torch.ones(2, 0)}))
    with pytest.raises(CheckpointError, match=r"'a' has shape \(2, 0\), expected 2 dimensions, none empty"):
        checkpoint.shape("a", 2)
    checkpoint.release()


def test_missing_tensor_names_the_closest(numbers: Path) -> None:
    checkpoint = open_checkpoint(numbers)
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: tensor 'b\.z' is missing; names like it: 'b\.[xy]'"
    ):
        checkpoint.take("b.z", (4,))
    with pytest.raises(CheckpointError, match=r"tensor 'quite_another' is missing$"):
        checkpoint.shape("quite_another")
    checkpoint.release()


def test_dropping(numbers: Path) -> None:
    with open_checkpoint(numbers) as checkpoint:
        checkpoint.drop("not there", "", "b", "b.")
        checkpoint.drop("a", "b.x", "b.y")


def test_left_over_tensors_are_listed(numbers: Path) -> None:
    checkpoint = open_checkpoint(numbers)
    checkpoint.take("a", (2, 3))
    with pytest.raises(CheckpointError, match=r"no place for \(2\): 'b\.x', 'b\.y'$"):
        checkpoint.close()


def test_many_left_over_tensors_are_counted(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_folder(tmp_path, {f"t{number:02d}": torch.ones(1) for number in range(30)}))
    with pytest.raises(CheckpointError, match=r"no place for \(30\): 't00', .*'t07' and 22 more$"):
        checkpoint.close()


def test_a_failing_block_keeps_its_own_error(numbers: Path) -> None:
    with pytest.raises(ZeroDivisionError), open_checkpoint(numbers):
        raise ZeroDivisionError


def test_progress_goes_up_to_all_bytes(numbers: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    with open_checkpoint(numbers, progress=lambda name, done, total: seen.append((name, done, total))) as checkpoint:
        checkpoint.take("b.y", (4,))
        checkpoint.drop("b.x")
        checkpoint.take("a", (2, 3))
    assert seen == [("b.y", 16, 56), ("b.x", 32, 56), ("a", 56, 56)]


def anonymous_bytes() -> int:
    """Memory of this process that no file backs."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel does not report RssAnon")


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's account of memory")
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_tensors_are_mapped_not_copied(file: str, tmp_path: Path) -> None:
    size = 96 * 2**20
    folder = make_folder(tmp_path, {str(part): torch.ones(size // 16) for part in range(4)}, file)
    before = anonymous_bytes()
    taken = take_all(open_checkpoint(folder))
    assert all(float(tensor.sum()) == size / 16 for tensor in taken.values())
    assert anonymous_bytes() - before < size / 4, "reading a mapped file takes no memory of its own"
