"""Listening, readiness, and what signals do, in a process of its own."""

from __future__ import annotations

import json
import re
import shlex
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from ostinato.server.serve import DrainingServer, ListenError, open_socket, url_of
from tests.fakes import ScriptedRunner, scripted_service
from tests.server.harness import TIMEOUT, live_server, settings
from tests.server.processes import running

FOREVER = {"prompt": "Hi", "max_tokens": 10**6, "ignore_eos": True, "stream": True}


def first_chunk(lines: Iterator[str]) -> dict[str, Any]:
    chunk: dict[str, Any] = json.loads(next(lines).removeprefix("data: "))
    return chunk


def test_the_announced_request_works_when_pasted() -> None:
    with running() as server:
        command = _line_with(server.output, "curl").strip()
        curl, unbuffered, url, header, content_type, data, body = shlex.split(command)
        assert (curl, unbuffered, header, data) == ("curl", "-N", "-H", "-d")
        name, value = content_type.split(": ")
        answer = httpx.post(url, content=body, headers={name: value}, timeout=TIMEOUT)
        assert answer.status_code == 200
        assert answer.text.rstrip().endswith("data: [DONE]")
        table = "".join(server.output)
        assert "GLAForCausalLM" in table
        assert "slots" in table
        assert "the same bits in any batch" in table
        assert httpx.get(f"{server.url}/v1/models").json()["data"][0]["id"] == "gla"
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


def _line_with(output: list[str], word: str) -> str:
    """The first line with `word`, once it has come."""
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        for line in list(output):
            if word in line:
                return line
        time.sleep(0.01)
    raise AssertionError(f"no line with {word!r} in " + "".join(output))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_lets_running_requests_finish_and_refuses_new_ones(number: signal.Signals) -> None:
    with running("--drain-seconds", "60") as server:
        body = {**FOREVER, "max_tokens": 500}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=TIMEOUT) as response:
            lines = (line for line in response.iter_lines() if line)
            assert first_chunk(lines)["choices"][0]["finish_reason"] is None
            server.signal(number)
            assert _refuses(server.url)
            *_, last, done = lines
        assert done == "data: [DONE]"
        assert json.loads(last.removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert server.wait() == 0


def _refuses(url: str) -> bool:
    """Whether new connections are refused, soon."""
    host, port = url.removeprefix("http://").split(":")
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except ConnectionRefusedError:
            return True
        time.sleep(0.01)
    return False


def test_what_outlasts_the_drain_is_ended_with_an_event() -> None:
    with running("--drain-seconds", "0.3") as server:
        with httpx.stream("POST", f"{server.url}/v1/completions", json=FOREVER, timeout=TIMEOUT) as response:
            lines = (line for line in response.iter_lines() if line)
            first_chunk(lines)
            server.signal(signal.SIGTERM)
            *_, last = lines
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_stopped"
        assert server.wait() == 0


def test_a_second_signal_ends_at_once() -> None:
    with running("--drain-seconds", "600") as server:
        with httpx.stream("POST", f"{server.url}/v1/completions", json=FOREVER, timeout=TIMEOUT) as response:
            lines = (line for line in response.iter_lines() if line)
            first_chunk(lines)
            server.signal(signal.SIGTERM)
            assert _refuses(server.url)
            server.signal(signal.SIGTERM)
            with pytest.raises(httpx.RemoteProtocolError):
                list(lines)
        assert server.wait() == 128 + signal.SIGTERM


def test_a_port_in_use_is_an_error_that_names_it() -> None:
    with open_socket("127.0.0.1", 0) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(ListenError, match=rf"127\.0\.0\.1:{port}.*--port"):
            open_socket("127.0.0.1", port)


@pytest.mark.parametrize("host", ["no.such.host.invalid", "300.1.1.1", "203.0.113.7"])
def test_a_host_that_is_not_here_is_an_error_that_names_it(host: str) -> None:
    with pytest.raises(ListenError, match=re.escape(host)):
        open_socket(host, 0)


@pytest.mark.parametrize(
    ("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("localhost", r"127\.0\.0\.1|\[::1\]")]
)
def test_the_shown_address_can_be_pasted(host: str, shown: str) -> None:
    with open_socket(host, 0) as listener:
        assert re.fullmatch(rf"http://({shown}):\d+", url_of(listener))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_model_that_cannot_take_a_step_ends_the_server() -> None:
    """Else it would listen for ever without becoming ready."""

    def broken(plan: object) -> None:
        raise RuntimeError("no such kernel")

    service = scripted_service(ScriptedRunner(before_step=broken))
    ready = threading.Event()
    server = DrainingServer(service, settings(log_level="critical"), ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [open_socket("127.0.0.1", 0)]}, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    assert not thread.is_alive()
    assert server.engine_died
    assert not ready.is_set()


def test_a_client_that_never_finishes_its_request_does_not_hold_up_the_end() -> None:
    service = scripted_service()
    with live_server(service) as url, socket.create_connection(tuple(url.removeprefix("http://").split(":"))) as stuck:
        stuck.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{")
        assert httpx.get(f"{url}/health").status_code == 200
