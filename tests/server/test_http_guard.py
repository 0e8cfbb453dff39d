"""Other origins, headers of answers, and what a live socket takes before it closes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import socket
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from ostinato.server.security import connections
from ostinato.server.security.connections import REFUSED_POLITELY
from ostinato.server.security.http_headers import MAX_HEADER_BYTES
from ostinato.server.security.layers import ORIGIN, warn_if_open
from tests.server.harness import TIMEOUT, error_of, live_server, serving, settings, text_service

PAGE = "https://page.example"


@pytest_asyncio.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with serving(text_service()) as connected:
        yield connected


@pytest.mark.asyncio
async def test_pages_of_other_origins_are_not_let_in_by_default(client: httpx.AsyncClient) -> None:
    for method in ("GET", "OPTIONS"):
        headers = {"origin": PAGE, "access-control-request-method": "POST"}
        response = await client.request(method, "/v1/models", headers=headers)
        assert not [name for name in response.headers if name.startswith("access-control")]
    assert response.status_code == 405


@pytest.mark.asyncio
async def test_pages_of_the_origins_that_are_named() -> None:
    """A preflight request has no key; errors carry the headers too, or scripts could not read them."""
    key = "k" * 32
    async with serving(text_service(), api_key=key, cors_origins=(PAGE, "http://other.example")) as client:
        asks = {
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,x-stainless-os",
        }
        preflight = await client.options("/v1/completions", headers={"origin": PAGE, **asks})
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == PAGE
        assert {"authorization", "x-stainless-os"} <= set(
            re.split(r",\s*", preflight.headers["access-control-allow-headers"])
        )
        assert "access-control-allow-credentials" not in preflight.headers
        stranger = await client.options("/v1/completions", headers={"origin": "https://evil.example", **asks})
        assert stranger.status_code == 400
        assert "access-control-allow-origin" not in stranger.headers
        for headers, status in (({}, 401), ({"authorization": f"Bearer {key}"}, 200)):
            response = await client.get("/v1/models", headers={"origin": PAGE, **headers})
            assert response.status_code == status
            assert response.headers["access-control-allow-origin"] == PAGE
            assert "retry-after" in response.headers["access-control-expose-headers"]
        response = await client.get("/health", headers={"origin": "https://evil.example"})
        assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("*", True),
        ("http://localhost:3000", True),
        ("https://a.example", True),
        ("https://a.example/", False),
        ("a.example", False),
        ("https://*.example", False),
        ("null", False),
        ("file://x", False),
    ],
)
def test_origins(text: str, good: bool) -> None:
    assert bool(ORIGIN.fullmatch(text)) is good


@pytest.mark.asyncio
async def test_answers_are_not_for_browsers_to_guess_at_or_keep(client: httpx.AsyncClient) -> None:
    body = {"prompt": "Hi", "max_tokens": 1}
    for response in (
        await client.get("/v1/models"),
        await client.get("/nothing"),
        await client.post("/v1/completions", json=body),
        await client.post("/v1/completions", json={**body, "stream": True}),
    ):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
        assert re.match("no-store|no-cache", response.headers["cache-control"])


@pytest.mark.asyncio
async def test_the_bound_on_headers_is_exact(client: httpx.AsyncClient) -> None:
    request = client.build_request("GET", "/health", headers={"x-filler": ""})
    used = len("/health") + sum(len(name) + len(value) for name, value in request.headers.raw)
    for more, status in ((0, 200), (1, 431)):
        filler = "x" * (MAX_HEADER_BYTES - used + more)
        response = await client.get("/health", headers={"x-filler": filler})
        assert response.status_code == status
    assert error_of(response)["code"] == "headers_too_large"


async def connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """The status and the error of an answer, after which the server closes."""
    head, _, body = (await asyncio.wait_for(reader.read(), TIMEOUT)).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


async def write_for_ever(writer: asyncio.StreamWriter) -> None:
    """Until the socket breaks, or some ten seconds have gone."""
    for _ in range(1000):
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.01)


@pytest.mark.asyncio
@pytest.mark.parametrize("where", ["line", "header", "headers"])
async def test_endless_headers_are_ended(where: str) -> None:
    """They come in pieces, and never to an end."""
    beginning = {"line": b"GET /", "header": b"GET / HTTP/1.1\r\nx: ", "headers": b"GET / HTTP/1.1\r\n"}[where]
    piece = b"x: y\r\n" * 500 if where == "headers" else b"x" * 3000
    with live_server(text_service()) as url:
        reader, writer = await connect(url)
        writer.write(beginning)
        sent = 0
        while sent < 10 * MAX_HEADER_BYTES and not reader.at_eof() and not reader._buffer:  # type: ignore[attr-defined]  # to see that an answer has come
            writer.write(piece)
            sent += len(piece)
            await asyncio.sleep(0.001)
        status, error = await answer(reader)
        assert (status, error["code"]) == (431, "headers_too_large")
        assert sent < 10 * MAX_HEADER_BYTES
        writer.close()
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"{url}/health")).status_code == 200


@pytest.mark.asyncio
async def test_one_who_sends_on_sees_the_answer_and_is_not_read_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of this lies unread when the server answers: closed at once, the connection would be reset."""
    monkeypatch.setattr(connections, "LINGER_SECONDS", 0.2)
    with live_server(text_service()) as url:
        reader, writer = await connect(url)
        writer.write(b"GET /" + b"x" * 100 * MAX_HEADER_BYTES)
        status, error = await answer(reader)
        assert (status, error["code"]) == (431, "headers_too_large")
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            await write_for_ever(writer)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "text", [b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 100 + b"\r\n\r\n"]
)
async def test_what_is_not_http_is_a_400(text: bytes) -> None:
    with live_server(text_service()) as url:
        reader, writer = await connect(url)
        writer.write(text)
        status, error = await answer(reader)
        assert (status, error["code"]) == (400, "invalid_http")
        writer.close()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "text",
    [b"", b"GET / HTTP/1.1\r\nhost", b"GET /health HTTP/1.1\r\nhost: x\r\n\r\nGET /"],
    ids=["nothing", "half", "the-second-one"],
)
async def test_headers_that_do_not_come_are_not_waited_for(text: bytes) -> None:
    with live_server(text_service(), header_seconds=0.05) as url:
        reader, writer = await connect(url)
        writer.write(text)
        received = await asyncio.wait_for(reader.read(), TIMEOUT)
        assert received.startswith(b"HTTP/1.1 200") is text.endswith(b"GET /")
        writer.close()


@pytest.mark.asyncio
async def test_a_body_that_stops_coming_is_not_waited_for() -> None:
    service = text_service()
    with live_server(service, body_seconds=0.05) as url:
        reader, writer = await connect(url)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n")
        writer.write(b'content-length: 1000\r\n\r\n{"prompt"')
        assert await asyncio.wait_for(reader.read(), TIMEOUT) == b""
        writer.close()
        async with httpx.AsyncClient() as client:
            body = {"prompt": "Hi", "max_tokens": 200, "ignore_eos": True}
            answered = await client.post(f"{url}/v1/completions", json=body, timeout=TIMEOUT)
            assert answered.json()["usage"]["completion_tokens"] == 200, "an answer may take as long as it takes"


@pytest.mark.asyncio
async def test_connections_too_many_are_told_so_and_then_closed() -> None:
    with live_server(text_service(), max_connections=2) as url:
        idle = [await connect(url) for _ in range(2)]
        reader, writer = await connect(url)
        writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        status, error = await answer(reader)
        assert (status, error["code"]) == (503, "too_many_connections")
        writer.close()
        for _, other in idle:
            other.close()
            await other.wait_closed()
        async with httpx.AsyncClient() as client:
            for _ in range(1000):  # the server is told of the closed ones by and by
                if (await client.get(f"{url}/health")).status_code == 200:
                    break
            else:
                raise AssertionError("no connection is free again")


@pytest.mark.asyncio
async def test_far_too_many_connections_are_closed_at_once() -> None:
    with live_server(text_service(), max_connections=1) as url:
        held = [await connect(url) for _ in range(1 + REFUSED_POLITELY)]
        reader, writer = await connect(url)
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), TIMEOUT) == b""
        for _, other in [*held, (reader, writer)]:
            other.close()


@pytest.mark.parametrize(
    ("host", "changes", "warns"),
    [
        ("0.0.0.0", {}, True),
        ("0.0.0.0", {"api_key": "x" * 32}, False),
        ("0.0.0.0", {"api_keys": "file"}, False),
        ("127.0.0.1", {}, False),
    ],
)
def test_a_server_that_is_open_to_all_says_so(
    host: str, changes: dict[str, str], warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as listener:
        listener.bind((host, 0))
        with caplog.at_level(logging.WARNING):
            warn_if_open(listener, settings(**changes))
    assert ("without API keys" in caplog.text) is warns
