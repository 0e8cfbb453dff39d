"""Files of API keys for tests, and applications that ask for them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from ostinato.engine.service import Service
from ostinato.server.app import create_app
from ostinato.server.security.api_keys import ApiKey, KeyLimits, KeyList, new_key, new_owner, secret_of
from ostinato.server.security.key_file import Keys, write_keys
from ostinato.server.security.layers import Access
from ostinato.server.security.meters import Meters
from tests.server.harness import TIMEOUT, settings, until


@dataclass
class Clock:
    """Seconds, as the test says."""

    now: float = 1_000.0

    def __call__(self) -> float:
        return self.now


class Tenants:
    """A file of keys, and the keys themselves by name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keys: dict[str, str] = {}
        self.entries: dict[str, ApiKey] = {}

    def add(self, name: str, *, metrics: bool = False, expires: float | None = None, **limits: int) -> str:
        """Makes a key, and writes the file."""
        key = new_key()
        self.keys[name] = key
        self.entries[name] = ApiKey(
            name=name,
            owner=new_owner(),
            secrets=(secret_of(key, expires),),
            limits=KeyLimits(**limits),
            metrics=metrics,
        )
        self.write()
        return key

    def limit(self, name: str, **limits: int) -> None:
        """Sets other limits, and writes the file."""
        self.entries[name] = self.entries[name].model_copy(update={"limits": KeyLimits(**limits)})
        self.write()

    def remove(self, name: str) -> None:
        del self.entries[name]
        self.write()

    def write(self) -> None:
        write_keys(self.path, KeyList(keys=tuple(self.entries.values())))

    def bearer(self, name: str) -> dict[str, str]:
        return bearer(self.keys[name])


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@asynccontextmanager
async def serving_keys(
    service: Service, tenants: Tenants, clock: Clock | None = None, **changes: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """As `harness.serving`, for those who have a key. clock: of the limits and of the keys' expiry."""
    clock = clock or Clock()
    access = Access(Keys(tenants.path, clock=clock), Meters(clock))
    app = create_app(service, settings(**changes), access)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://ostinato", timeout=TIMEOUT) as client,
    ):
        await until(lambda: service.ready)
        yield client
