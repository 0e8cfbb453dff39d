"""The layers between the network and the routes: API keys and their limits, other origins, and headers."""

from __future__ import annotations

import ipaddress
import logging
import re
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from ostinato.server.security.api_keys import single_key
from ostinato.server.security.auth import PROBES, Authentication
from ostinato.server.security.http_headers import HeaderGuard
from ostinato.server.security.key_file import Keys
from ostinato.server.security.meters import Meters

if TYPE_CHECKING:
    from ostinato.server.settings import ServerSettings

logger = logging.getLogger(__name__)

METHODS = ("GET", "POST", "PUT", "DELETE")
LIMIT_HEADERS = tuple(
    f"x-ratelimit-{fact}-{what}" for fact in ("limit", "remaining", "reset") for what in ("requests", "tokens")
)
EXPOSED = ("x-request-id", "retry-after", "etag", *LIMIT_HEADERS)  # what scripts of other origins may read
ORIGIN = re.compile(r"\*|https?://[^/\s*?#@]+")


@dataclass(frozen=True)
class Access:
    """Who may use the server, and what each has used. keys: None: everybody may."""

    keys: Keys | None = None
    meters: Meters = field(default_factory=Meters)

    def state_bytes(self, owner: str) -> int | None:
        """That an owner may hold in the state store; None for no bound."""
        return None if self.keys is None else self.keys.state_bytes(owner)


def open_access(settings: ServerSettings) -> Access:
    """Raises KeyFileError, WeakKeyError."""
    if settings.api_keys is None and settings.api_key is None:
        return Access()
    single = None if settings.api_key is None else single_key(settings.api_key)
    return Access(Keys(None if settings.api_keys is None else Path(settings.api_keys), single))


def secure(app: FastAPI, settings: ServerSettings, access: Access) -> None:
    """Adds the layers, the innermost first. A preflight request of a browser has no key, so CORS comes before keys."""
    if access.keys is not None:
        app.add_middleware(Authentication, keys=access.keys, meters=access.meters, open_metrics=settings.open_metrics)
        _describe_keys(app)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=METHODS,
            allow_headers=["*"],  # OpenAI's clients send a dozen of their own
            expose_headers=EXPOSED,
        )
    app.add_middleware(HeaderGuard)


def _describe_keys(app: FastAPI) -> None:
    """Says in /openapi.json that every route but the probes wants a key."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:  # JSON
        schema = describe()
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"key": []}]
        for path in PROBES:
            for operation in schema["paths"][path].values():
                operation["security"] = []
        return schema

    app.openapi = openapi  # type: ignore[method-assign]  # the way that FastAPI documents


def warn_if_open(listener: socket.socket, settings: ServerSettings) -> None:
    """Says so if other machines can reach a server that asks nobody for a key."""
    host = listener.getsockname()[0]
    if settings.api_keys is None and settings.api_key is None and not ipaddress.ip_address(host).is_loopback:
        logger.warning(
            "listening on %s without API keys: whoever reaches this port may use the model, and read and delete the "
            "states of all who send no key; use --api-keys, or let a proxy check who comes",
            host,
        )
