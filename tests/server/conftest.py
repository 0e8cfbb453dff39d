from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from ostinato.engine.service import Service
from ostinato.engine.text.tokenizer import Tokenizer
from tests.engine.store.backends import place, redis_url, s3_endpoint, s3_url
from tests.server.harness import gla_tokenizer, real_service, serving

__all__ = ["place", "redis_url", "s3_endpoint", "s3_url"]  # fixtures


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return gla_tokenizer()


@pytest.fixture
def service() -> Service:
    """The tiny GLA checkpoint, behind an engine that is not started yet."""
    return real_service()


@pytest_asyncio.fixture
async def client(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application that serves `service`."""
    async with serving(service) as connected:
        yield connected
