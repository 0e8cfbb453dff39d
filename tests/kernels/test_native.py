"""Building the C++ operators: cached by content, nothing half-made, and a clear reason where it is impossible."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from ostinato.kernels import dispatch, native


def load_afresh() -> str | None:
    return native.load.__wrapped__()


def test_the_operators_are_in_use_here() -> None:
    """Otherwise all tests of the C++ operators would compare the reference with itself."""
    assert native.load() is None
    assert dispatch.product(torch.empty(0)) != "plain"


def test_without_a_compiler_there_is_a_reason_and_a_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OSTINATO_CACHE", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "install g++ or clang" in str(load_afresh())


def test_a_library_in_the_cache_needs_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copy(native.library_path(), tmp_path)
    monkeypatch.setenv("OSTINATO_CACHE", str(tmp_path))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    loaded: list[Path] = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    assert load_afresh() is None
    assert [path.parent for path in loaded] == [tmp_path]


def test_compiling_does_not_change_which_library_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A second process, or a second call, must find what the first one built."""
    sources, cache = tmp_path / "sources", tmp_path / "cache"
    sources.mkdir()
    (sources / "ops.cpp").write_text("int answer() { return 42; }\n")  # the operators would take minutes
    monkeypatch.setenv("OSTINATO_CACHE", str(cache))
    monkeypatch.setattr(native, "SOURCES", sources)
    before = native.library_path()
    assert load_afresh() is None
    assert native.library_path() == before
    assert {path.name for path in cache.iterdir()} - {"lock"} == {before.name}
    monkeypatch.setattr(native, "_compile", lambda library: pytest.fail("compiled again"))
    assert load_afresh() is None


def test_a_damaged_library_is_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    library = tmp_path / native.library_path().name
    library.write_bytes(b"half a file")
    monkeypatch.setenv("OSTINATO_CACHE", str(tmp_path))
    compiled: list[Path] = []
    monkeypatch.setattr(native, "_compile", compiled.append)
    assert load_afresh() is None
    assert compiled == [library]
    assert not library.exists()


def test_of_two_at_once_one_compiles_and_one_waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    finished, compiled, both_miss_it = native.library_path(), [], threading.Barrier(2, timeout=60)

    def copy_it(library: Path) -> None:
        compiled.append(library)
        shutil.copy(finished, library)

    def compiler() -> str:
        both_miss_it.wait()  # asked for when the library was not found
        return "c++"

    monkeypatch.setenv("OSTINATO_CACHE", str(tmp_path))
    monkeypatch.setattr(native, "compiler", compiler)
    monkeypatch.setattr(native, "_compile", copy_it)
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    with ThreadPoolExecutor() as threads:
        reasons = [task.result() for task in [threads.submit(load_afresh) for _ in range(2)]]
    assert reasons == [None, None]
    assert compiled == [tmp_path / finished.name]


def test_ninja_is_found_in_an_environment_that_is_not_activated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with native._ninja_on_path():
        found = shutil.which("ninja")
    assert found is not None
    assert shutil.which("ninja") is None


def test_a_failed_compilation_is_reported_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sources, cache = tmp_path / "sources", tmp_path / "cache"
    sources.mkdir()
    (sources / "ops.cpp").write_text("this is not C++")
    monkeypatch.setenv("OSTINATO_CACHE", str(cache))
    monkeypatch.setattr(native, "SOURCES", sources)
    assert "compiling the CPU operators failed" in str(load_afresh())
    assert {path.name for path in cache.iterdir()} <= {"lock"}


def test_other_sources_are_another_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    original = native.library_path()
    shutil.copytree(native.SOURCES, tmp_path / "cpu")
    monkeypatch.setattr(native, "SOURCES", tmp_path / "cpu")
    assert native.library_path() == original
    with (tmp_path / "cpu" / "conv.cpp").open("a") as file:
        file.write("\n")
    assert native.library_path() != original
