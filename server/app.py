"""The HTTP application around one loaded model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING

from fastapi import FastAPI

from ostinato.server.api_schema import describe_refusals_only
from ostinato.server.chat import chat_router
from ostinato.server.completions import completions_router
from ostinato.server.context import Context
from ostinato.server.errors import install_error_handlers
from ostinato.server.ops import ops_router
from ostinato.server.preview import preview_router
from ostinato.server.responses.routes import responses_router
from ostinato.server.security.body_limit import BodyLimit
from ostinato.server.security.layers import Access, open_access, secure
from ostinato.server.states.branches import state_branches_router
from ostinato.server.states.files import state_files_router
from ostinato.server.states.routes import states_router
from ostinato.server.states.store import open_states, sweep
from ostinato.server.telemetry.metrics import Metrics
from ostinato.server.telemetry.request_log import RequestLog
from ostinato.server.telemetry.tracing import Tracing, open_tracing
from ostinato.server.tokens import tokens_router

if TYPE_CHECKING:
    from ostinato.engine.service import Service
    from ostinato.server.settings import ServerSettings


def create_app(
    service: Service, settings: ServerSettings, access: Access | None = None, tracing: Tracing | None = None
) -> FastAPI:
    """The application that serves `service`. Its lifespan starts and stops the service's loop.

    access: who may use it; tracing: where traces go. None: as the settings say.

    Raises:
        StoreUnavailableError, KeyFileError, WeakKeyError: the state store or the API keys cannot be opened.
        TracingError: traces are asked for, but cannot be sent.

    The API is described at /openapi.json. There is no page that renders it: the usual ones load scripts from afar.
    """
    access = access or open_access(settings)
    tracing = tracing or open_tracing(settings.otlp_endpoint)
    states = open_states(service, settings, access.state_bytes)
    context = Context(service, settings, Metrics(service, states), states, access.meters)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        sweeper = None if context.states is None else asyncio.create_task(sweep(context.states))
        try:
            yield
        finally:
            if sweeper is not None:
                sweeper.cancel()
            await service.stop()
            context.tokenizing.shutdown(wait=False)
            if tracing is not None:
                await asyncio.to_thread(tracing.shutdown)

    app = FastAPI(
        title="Ostinato",
        version=version("ostinato"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.context = context
    routers = (
        completions_router,
        chat_router,
        responses_router,
        states_router,
        state_branches_router,
        state_files_router,
        tokens_router,
        preview_router,
        ops_router,
    )
    for make_router in routers:
        app.include_router(make_router(context))
    describe_refusals_only(app)
    install_error_handlers(app)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes, max_state_bytes=settings.max_state_bytes)
    secure(app, settings, access)
    app.add_middleware(RequestLog, metrics=context.metrics, tracing=tracing)
    return app
