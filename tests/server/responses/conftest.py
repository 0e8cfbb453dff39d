"""Fixtures of the Responses form."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest_asyncio

from ostinato.engine.service import Service
from tests.server.harness import serving


@pytest_asyncio.fixture
async def client(tmp_path: Path, service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """Of a server that keeps states."""
    async with serving(service, state_store=(str(tmp_path),)) as client:
        yield client
