"""Nothing in the source runs what it reads: no pickle but tensors alone, no eval, no loader that builds objects."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("server", "engine", "models", "kernels", "deploy", "scripts")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

FORBIDDEN_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}
TENSORS_ONLY = {"torch.load", "torch.jit.load"}


def problems_in(source: str) -> list[str]:
    """What a file does that may run what it reads, by line."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [f"{node.lineno}: {alias.name}" for alias in node.names if _root(alias.name) in FORBIDDEN_MODULES]
        if isinstance(node, ast.ImportFrom) and _root(node.module or "") in FORBIDDEN_MODULES:
            found.append(f"{node.lineno}: {node.module}")
        if isinstance(node, ast.ImportFrom) and node.module in ("torch", "numpy"):
            found += [f"{node.lineno}: {alias.name}" for alias in node.names if alias.name == "load"]
        if isinstance(node, ast.Call):
            found += _problems_of_call(node)
    return found


def _problems_of_call(node: ast.Call) -> list[str]:
    name = ast.unparse(node.func)
    arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    shell = name.startswith("subprocess.") and arguments.get("shell", "False") != "False"
    if name in FORBIDDEN_CALLS or shell:
        return [f"{node.lineno}: {name}"]
    if arguments.get("allow_pickle", "False") != "False" or arguments.get("trust_remote_code", "False") != "False":
        return [f"{node.lineno}: {name}"]
    if name in TENSORS_ONLY and arguments.get("weights_only") != "True":
        return [f"{node.lineno}: {name} without weights_only=True"]
    return []


def _root(module: str) -> str:
    return module.partition(".")[0]


def test_there_is_something_to_look_at() -> None:
    assert len(SOURCES) > 100
    assert any("weights_only=True" in path.read_text() for path in SOURCES)


def test_nothing_that_is_read_is_run() -> None:
    found = {str(path.relative_to(ROOT)): problems_in(path.read_text()) for path in SOURCES}
    assert {path: problems for path, problems in found.items() if problems} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import yaml as y",
        "from dill.source import x",
        "from torch import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "np.load(path, allow_pickle=True)",
        "AutoTokenizer.from_pretrained(path, trust_remote_code=True)",
        "subprocess.run(text, shell=True)",
        "def f():\n    return eval(text)",
        "exec(text)",
    ],
)
def test_each_of_them_is_noticed(source: str) -> None:
    assert problems_in(source)


@pytest.mark.parametrize(
    "source", ["torch.load(path, weights_only=True)", "model.eval()", "re.compile(text)", "ast.literal_eval(text)"]
)
def test_what_is_harmless_is_not(source: str) -> None:
    assert not problems_in(source)
