"""Opening the state store that the settings name."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from ostinato.engine.errors import StateStoreError
from ostinato.engine.states import States
from ostinato.engine.store.blobs import open_blobs
from ostinato.engine.store.owner_budget import LimitOf, no_limit
from ostinato.engine.store.state_store import StateStore, Tier

if TYPE_CHECKING:
    from ostinato.engine.service import Service
    from ostinato.server.settings import ServerSettings

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 60.0


def open_states(service: Service, settings: ServerSettings, owner_limit: LimitOf = no_limit) -> States | None:
    """The states of the served model; None where none are kept. Raises StoreUnavailableError."""
    if not settings.state_store or service.snapshots is None:
        return None
    tiers = [Tier(open_blobs(place), budget_bytes=settings.state_store_bytes) for place in settings.state_store]
    store = StateStore(tiers, compression="zstd" if settings.state_compression else None, owner_limit=owner_limit)
    return States(service.snapshots, store, settings.state_memory_bytes)


async def sweep(states: States) -> None:
    """Deletes now and then what has expired or is beyond the budgets, and notes what is there, until cancelled."""

    def look() -> None:
        states.usage = states.store.usage()

    while True:
        await _attempt(look)
        await asyncio.sleep(SWEEP_SECONDS)
        await _attempt(states.store.sweep)


async def _attempt(work: Callable[[], None]) -> None:
    """The next one is to come, whatever happens in this one."""
    try:
        await asyncio.to_thread(work)
    except StateStoreError as error:
        logger.warning("the state store could not be swept: %s", error)
    except Exception:
        logger.exception("a sweep of the state store failed")
