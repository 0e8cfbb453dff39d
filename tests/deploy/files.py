"""What the tests of deploy/ share: where its files are, how they are read, and the tools that check them."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer.main
import yaml

from ostinato.server.cli.main import app
from tests.engine.store.backends import missing

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "docker" / "Dockerfile"
CHART = DEPLOY / "helm" / "ostinato"


def read_yaml(path: Path) -> Any:  # YAML has no type
    return yaml.safe_load(path.read_text())


def require(module: str, package: str) -> None:
    """Skips, or fails in CI, where a package of the `test` extra is not installed."""
    if find_spec(module) is None:
        raise missing(package, "pip install 'ostinato[test]'")


def program(name: str, remedy: str) -> str:
    """The path of a program; without it the test is skipped, or fails in CI."""
    found = shutil.which(name)
    if found is None:
        raise missing(name, remedy)
    return found


def serve_options(arguments: Sequence[str]) -> dict[str, Any]:
    """What `ostinato serve` makes of its arguments, without serving. Fails as the command would."""
    group = typer.main.get_command(app)
    command = group.commands["serve"]
    return dict(command.make_context("serve", list(arguments)).params)


def instruction(name: str, stage: str) -> str:
    """The last instruction of that name in a stage of the Dockerfile, without its name, lines joined."""
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    lines = text[text.index(f" AS {stage}\n") :].splitlines()[1:]
    end = next((i for i, line in enumerate(lines) if line.startswith("FROM ")), len(lines))
    return next(line for line in reversed(lines[:end]) if line.startswith(f"{name} ")).removeprefix(f"{name} ")


def image_environment() -> dict[str, str]:
    return dict(pair.split("=", 1) for pair in shlex.split(instruction("ENV", "runtime")))
