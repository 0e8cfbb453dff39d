"""The image, the compose file and the systemd unit: their own tools, and what they say of the server against it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from ostinato.server.units import parse_bytes
from tests.deploy.files import (
    DEPLOY,
    DOCKERFILE,
    ROOT,
    image_environment,
    instruction,
    program,
    read_yaml,
    require,
    serve_options,
)
from tests.engine.store.backends import free_port
from tests.server.harness import live_server, text_service

COMPOSE = DEPLOY / "compose"
UNIT = DEPLOY / "systemd" / "ostinato.service"


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **environment})


def in_environment(tool: str) -> str:
    """A program that pip installed beside this Python, or anywhere on the path."""
    beside = Path(sys.executable).parent / tool
    return str(beside) if beside.exists() else program(tool, "pip install 'ostinato[test]'")


def test_hadolint_finds_nothing() -> None:
    result = run(in_environment("hadolint"), "-c", str(DEPLOY / "docker" / "hadolint.yaml"), str(DOCKERFILE))
    assert result.returncode == 0, result.stdout + result.stderr


def healthcheck(port: int) -> int:
    _, _, command = instruction("HEALTHCHECK", "runtime").partition("CMD ")
    interpreter, *arguments = json.loads(command)
    assert interpreter == "python"
    return run(sys.executable, *arguments, PORT=str(port)).returncode


def test_the_healthcheck_tells_a_server_from_none() -> None:
    with live_server(text_service()) as url:
        assert healthcheck(int(url.rpartition(":")[2])) == 0
    assert healthcheck(free_port()) != 0


@pytest.mark.parametrize(("stage", "device"), [("cpu", "cpu"), ("cuda", "cuda")])
def test_the_image_starts_a_server_that_is_reached_from_outside(
    stage: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PORT", image_environment()["PORT"])
    command, verb, *options = json.loads(instruction("ENTRYPOINT", stage)) + json.loads(instruction("CMD", stage))
    assert (command, verb) == ("ostinato", "serve")
    found = serve_options(options)
    assert (found["model"], found["host"], found["device"]) == ("demo", "0.0.0.0", device)
    assert str(found["port"]) == instruction("EXPOSE", "runtime")


def test_the_image_runs_without_rights_and_keeps_what_it_writes() -> None:
    user, group = instruction("USER", "runtime").split(":")
    assert int(user) > 0
    assert int(group) > 0
    kept = [Path(folder) for folder in json.loads(instruction("VOLUME", "runtime"))]
    written = image_environment()
    for name in ("HOME", "HF_HOME", "OSTINATO_CACHE", "TRITON_CACHE_DIR"):
        assert any(Path(written[name]).is_relative_to(folder) for folder in kept), name
    assert Path(written["XDG_STATE_HOME"]) / "ostinato" in kept


def test_the_image_is_built_from_all_that_the_package_needs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    needed |= set(project["tool"]["setuptools"]["package-dir"].values())
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == needed
    assert all((ROOT / name).exists() for name in needed)


def services() -> dict[str, Any]:
    found: dict[str, Any] = read_yaml(COMPOSE / "compose.yaml")["services"]
    return found


@pytest.mark.parametrize("name", ["compose.yaml", "compose.cuda.yaml"])
def test_compose_files_follow_the_specification(name: str) -> None:
    require("compose_spec", "compose-spec")
    from compose_spec import PyCompose

    composed = PyCompose.from_yaml((COMPOSE / name).read_text())
    composed.validate()
    assert set(composed.service_names()) <= set(services())


def test_compose_names_only_what_is_there() -> None:
    whole = read_yaml(COMPOSE / "compose.yaml")
    for name, service in whole["services"].items():
        assert set(service.get("depends_on", ())) <= set(whole["services"]), name
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (COMPOSE / source).is_dir() if source.startswith(".") else source in whole["volumes"], volume
        assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", ())), name
    build = whole["services"]["server"]["build"]
    assert (COMPOSE / build["context"] / build["dockerfile"]).resolve() == DOCKERFILE


def test_compose_gives_the_server_a_store_with_room_for_its_budget() -> None:
    whole = services()
    given = [re.sub(r"\$\{\w+:-(\w+)\}", r"\1", word) for word in whole["server"]["command"]]
    options = serve_options(given)
    assert options["model"] == "demo"
    assert options["state_store"] == ["redis://redis:6379/0"]
    redis = dict(zip(whole["redis"]["command"][1::2], whole["redis"]["command"][2::2], strict=True))
    assert redis["--maxmemory-policy"] == "noeviction"
    assert redis["--appendonly"] == "yes"
    assert options["state_store_size"] < parse_bytes(redis["--maxmemory"])
    assert options["drain_seconds"] < int(whole["server"]["stop_grace_period"].removesuffix("s"))


def test_prometheus_and_grafana_find_each_other() -> None:
    (job,) = read_yaml(DEPLOY / "prometheus" / "prometheus.yml")["scrape_configs"]
    (found,) = job["dns_sd_configs"]
    assert found["names"] == ["server"]
    assert str(found["port"]) == image_environment()["PORT"]
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = read_yaml(provisioning / "datasources" / "prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = read_yaml(provisioning / "dashboards" / "ostinato.yml")["providers"]
    mounts = [volume.split(":")[:2] for volume in services()["grafana"]["volumes"]]
    assert ["../grafana/dashboards", provider["options"]["path"]] in mounts


def unit_setting(name: str) -> list[str]:
    return [line.partition("=")[2] for line in UNIT.read_text().splitlines() if line.startswith(f"{name}=")]


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    (start,) = unit_setting("ExecStart")
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace(start.split()[0], sys.executable))  # it has to exist
    result = run(program("systemd-analyze", "apt-get install systemd"), "verify", "--man=no", str(copy))
    assert result.returncode == 0, result.stderr
    assert UNIT.name not in result.stderr, result.stderr


def test_the_unit_starts_the_server_and_waits_for_its_drain() -> None:
    defaults = dict(pair.split("=", 1) for line in unit_setting("Environment") for pair in shlex.split(line))
    (start,) = unit_setting("ExecStart")
    start = start.replace("${OSTINATO_MODEL}", defaults["OSTINATO_MODEL"])
    command, verb, *options = shlex.split(start.replace("$OSTINATO_OPTIONS", defaults["OSTINATO_OPTIONS"]))
    assert (Path(command).name, verb) == ("ostinato", "serve")
    found = serve_options(options)
    assert found["model"] == "demo"
    assert found["drain_seconds"] + 2 < int(unit_setting("TimeoutStopSec")[0])
