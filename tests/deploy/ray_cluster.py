"""Replicas on Ray in processes of their own, on this machine alone."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.deploy.files import ROOT
from tests.engine.store.backends import free_port

STARTING_SECONDS = 240  # of many processes, two of which import PyTorch
REPLICA = "ray::ServeReplica:default:Replica"


@dataclass
class Cluster:
    """A running `python -m deploy.ray`."""

    process: subprocess.Popen[str]
    url: str
    output: list[str]

    def replicas(self) -> list[psutil.Process]:
        """The processes of the replicas. Ray renames them once they are what they are."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.cmdline()[:1] and process.cmdline()[0].startswith(REPLICA):
                    found.append(process)
        return found


@contextlib.contextmanager
def ray_cluster(*arguments: str, devices: str = "cpu,cpu") -> Iterator[Cluster]:
    """Ends with everything that it started gone, whatever happens inside."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as home:  # short: sockets lie in it
        command = [sys.executable, "-m", "deploy.ray", "--devices", devices, "--port", str(port), *arguments]
        process = subprocess.Popen(
            command, cwd=ROOT, env=_environment(Path(home)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        output: list[str] = []
        assert process.stdout is not None
        reader = threading.Thread(target=output.extend, args=(process.stdout,), daemon=True)
        reader.start()
        try:
            _wait_ready(process, output)
            yield Cluster(process, f"http://127.0.0.1:{port}", output)
            assert process.poll() is None, f"Ray ended by itself ({process.poll()}):\n" + "".join(output)
        finally:
            _end(process)
            reader.join()
            process.stdout.close()


def _environment(home: Path) -> dict[str, str]:
    """One thread for each process, no calls home, nothing written but under `home`, and patience: on a busy machine
    what does not answer for a while is not dead.
    """
    token = home / "token"
    token.write_text(secrets.token_hex(32))
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_TMPDIR": str(home),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_agent_register_timeout_ms": "300000",
        "RAY_health_check_failure_threshold": "100",
        "RAY_worker_register_timeout_seconds": "300",
        "NO_COLOR": "1",
    }


def _wait_ready(process: subprocess.Popen[str], output: list[str]) -> None:
    deadline = time.monotonic() + STARTING_SECONDS
    while not any("Ready at" in line for line in output):
        assert process.poll() is None, "Ray ended before it was ready:\n" + "".join(output)
        assert time.monotonic() < deadline, "Ray did not become ready:\n" + "".join(output)
        time.sleep(0.1)


def _end(process: subprocess.Popen[str]) -> None:
    """SIGTERM, which drains; and whatever is left then is killed."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(60)
    for left in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            left.kill()
    process.kill()
    process.wait()
