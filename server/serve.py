"""Running the application: listen, say when it is ready, and drain on the first signal."""

from __future__ import annotations

import asyncio
import math
import os
import socket
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from ostinato.engine.errors import EngineStoppedError, OstinatoError
from ostinato.server.app import create_app
from ostinato.server.security.connections import guarded_protocol
from ostinato.server.security.http_headers import MAX_HEADER_BYTES

if TYPE_CHECKING:
    from ostinato.engine.service import Service
    from ostinato.server.settings import ServerSettings

POLL_SECONDS = 0.05
KEEP_ALIVE_SECONDS = 75  # longer than clients keep idle connections, so that they do not write to a closing one
PARK_SECONDS = 10.0  # after a drain, for what still runs to be stored
LAST_WORDS_SECONDS = 2  # for the final events to go out after a drain


class ListenError(OstinatoError):
    """The address cannot be listened on."""


def open_socket(host: str, port: int) -> socket.socket:
    """A bound TCP socket; port 0 takes any free one. Bound before the model is loaded, so that a port in use is
    reported at once.

    Raises:
        ListenError: names the address and the remedy.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, proto)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except (OSError, OverflowError) as error:
        raise ListenError(f"cannot listen on {host}:{port}: {error}; choose others with --host and --port") from error
    return listener


def url_of(listener: socket.socket) -> str:
    """The address to reach the server at from this machine."""
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"


def run_server(
    service: Service, settings: ServerSettings, listener: socket.socket, on_ready: Callable[[], None]
) -> None:
    """Serve until a signal. `on_ready` is called once a completion would be served.

    SIGTERM or SIGINT drains: no new connections and requests, running requests go on for up to
    `settings.drain_seconds`, then the rest is parked, if that is asked for, or aborted with a final event. A second
    signal ends the process at once.

    Raises:
        EngineStoppedError: the engine's thread ended, which only an error in it can cause.
    """
    server = DrainingServer(service, settings, on_ready)
    server.run(sockets=[listener])
    if server.engine_died:
        raise EngineStoppedError("the engine ended with an error, which is in the log above")


class DrainingServer(uvicorn.Server):
    """uvicorn, with the service's drain beside its own, and an eye on the engine: it is announced when it is ready,
    and the server ends when it has died.
    """

    def __init__(self, service: Service, settings: ServerSettings, on_ready: Callable[[], None]) -> None:
        self.park_seconds = PARK_SECONDS if settings.park_on_drain else 0.0
        super().__init__(
            uvicorn.Config(
                create_app(service, settings),
                log_level=settings.log_level,
                lifespan="on",
                loop="asyncio",  # the one that is tested: uvicorn would take another one that happens to be installed
                ws="none",
                http=guarded_protocol(settings.max_connections, settings.header_seconds, settings.body_seconds),
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=math.ceil(settings.drain_seconds + self.park_seconds) + LAST_WORDS_SECONDS,
                log_config=None if settings.log_format == "json" else uvicorn.config.LOGGING_CONFIG,
                access_log=False,  # it would show prompts in queries; RequestLog has a line for each request
            )
        )
        self.service = service
        self.drain_seconds = settings.drain_seconds
        self.on_ready = on_ready
        self.engine_died = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Unlike uvicorn's, does not raise the signal again after a drain: that is a regular end, with exit code 0."""
        if self.should_exit:
            os._exit(128 + sig)
        self.should_exit = True

    async def main_loop(self) -> None:
        watch = asyncio.create_task(self._watch())
        try:
            await super().main_loop()
        finally:
            watch.cancel()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn closes the listener and waits for the open connections; the drain sees to it that they end.

        Those that do not, because their client neither reads nor finishes its request, are cut off a little later.
        """
        drain = asyncio.create_task(self.service.drain(self.drain_seconds, self.park_seconds))
        await super().shutdown(sockets)
        await drain

    async def _watch(self) -> None:
        announced = False
        while self.service.healthy:
            if self.service.ready and not announced:
                announced = True
                self.on_ready()
            await asyncio.sleep(POLL_SECONDS)
        self.engine_died = self.should_exit = True
