"""The routes around generation: the model, health and metrics."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST

from ostinato.engine.initial_states import DEFAULT
from ostinato.server.api_schema import Described, refusals
from ostinato.server.context import Context
from ostinato.server.errors import NotReadyError
from ostinato.server.replies import ModelCard, ModelList, Status

METRICS: Described = {
    200: {"description": "In Prometheus' text format", "content": {"text/plain": {"schema": {"type": "string"}}}}
}


def ops_router(context: Context) -> APIRouter:
    router = APIRouter(responses=refusals(403, 404, 503))

    @router.get("/v1/models")
    async def list_models() -> ModelList:
        return ModelList(data=[model_card(context)])

    @router.get("/v1/models/{name:path}")
    async def get_model(name: str) -> ModelCard:
        context.check_model(name)
        return model_card(context)

    @router.get("/health")
    async def health() -> Status:
        if not context.service.healthy:
            raise NotReadyError("the engine loop is not running")
        return Status(status="ok")

    @router.get("/ready")
    async def ready() -> Status:
        if not context.service.healthy:
            raise NotReadyError("the engine loop is not running")
        if not context.service.ready:
            raise NotReadyError("the server is warming up or shutting down")
        seconds = context.service.step_age
        if seconds > context.settings.step_timeout:
            raise NotReadyError(f"a step has not ended for {seconds:.0f} seconds")
        return Status(status="ready")

    @router.get("/metrics", response_class=Response, responses=METRICS)
    async def metrics() -> Response:
        return Response(context.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router


def model_card(context: Context) -> ModelCard:
    info = context.service.info
    return ModelCard(
        id=context.model_name,
        created=context.created,
        architecture=info.architecture,
        family=info.family,
        vocab_size=info.vocab_size,
        dtype=info.dtype,
        state_dtype=info.state_dtype,
        bytes_per_state=info.bytes_per_state,
        slots=info.slots,
        weight_bytes=info.weight_bytes,
        batch_invariant=info.batch_invariant,
        has_tokenizer=context.service.tokenizer is not None,
        attention_window=info.attention_window,
        encoder_length=info.encoder_length or None,
        initial_states=sorted(name for name in context.service.initial_states if name != DEFAULT),
    )
