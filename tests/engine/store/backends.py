"""The places that the state store's tests run on: a folder, a real Redis server, and an S3-compatible server.

Redis is Debian's `redis-server`; S3 is moto's server, which comes with the `test` extra. A part that is missing skips
its tests and says how to enable them, but not in CI, where every part must be there.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from ostinato.engine.store.blobs import Blobs, open_blobs
from ostinato.engine.store.object_blobs import ObjectBlobs

BACKENDS = ("folder", "redis", "s3")
BUCKET = "states"
_STARTING_SECONDS = 120


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    program = shutil.which("redis-server")
    if program is None:
        raise missing("Redis", "apt-get install redis-server")
    port = free_port()
    folder = tmp_path_factory.mktemp("redis")
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with server(command, port):
        yield f"redis://127.0.0.1:{port}"


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    if find_spec("moto") is None:
        raise missing("an S3-compatible server", "pip install 'ostinato[test]'")
    port = free_port()
    with server([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port):
        endpoint = f"http://127.0.0.1:{port}"
        request = urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")
        with urllib.request.urlopen(request, timeout=_STARTING_SECONDS) as answer:
            assert answer.status == 200
        yield endpoint


@pytest.fixture
def s3_url(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder of its own in the bucket, and the environment that opens it."""
    for name, value in s3_environment(s3_endpoint).items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture(params=BACKENDS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder or URL."""
    if request.param == "folder":
        return str(tmp_path / "states")
    if request.param == "s3":
        return str(request.getfixturevalue("s3_url"))
    url = str(request.getfixturevalue("redis_url"))
    flush(url)
    return url


@pytest.fixture
def reopen(place: str) -> Callable[[], Blobs]:
    """Opens the place as another process would. S3 has no grace period here, so that all places do the same."""
    return lambda: ObjectBlobs(place, grace=0.0) if place.startswith("s3:") else open_blobs(place)


@pytest.fixture
def blobs(reopen: Callable[[], Blobs]) -> Blobs:
    return reopen()


def s3_environment(endpoint: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }


def missing(part: str, remedy: str) -> BaseException:
    """What to raise where a part is not installed: a skip, or a failure in CI."""
    reason = f"{part} is not installed: {remedy}"
    if os.environ.get("CI") == "true":
        return pytest.fail.Exception(reason)
    return pytest.skip.Exception(reason)


def flush(url: str) -> None:
    import redis

    with redis.Redis.from_url(url) as client:
        client.flushdb()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def server(command: list[str], port: int) -> Iterator[None]:
    """Runs a server until the block ends; it answers on `port` when the block begins."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_until_open(process, port)
        yield
    finally:
        process.kill()
        process.wait()


def _wait_until_open(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + _STARTING_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, f"{process.args!r} ended with {process.returncode}"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError(f"{process.args!r} does not listen on port {port}")
