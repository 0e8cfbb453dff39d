"""The routes around generation: the model, the tokenizer, health and metrics."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST

from ostinato.engine.errors import RequestError
from ostinato.server.context import Context
from ostinato.server.errors import NotReadyError
from ostinato.server.protocol import DetokenizeRequest, TokenizeRequest
from ostinato.server.replies import DetokenizeReply, ModelCard, ModelList, Status, TokenizeReply
from ostinato.server.validation import StrictJsonRoute


def ops_router(context: Context) -> APIRouter:
    router = APIRouter(route_class=StrictJsonRoute)

    @router.get("/v1/models")
    async def list_models() -> ModelList:
        return ModelList(data=[model_card(context)])

    @router.get("/v1/models/{name:path}")
    async def get_model(name: str) -> ModelCard:
        context.check_model(name)
        return model_card(context)

    @router.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> TokenizeReply:
        context.check_model(body.model)
        if body.messages is not None and body.prompt is None:
            ids = await context.encode_chat(body.messages)
        elif body.prompt is not None and body.messages is None:
            ids = await context.encode(body.prompt, "prompt", add_special_tokens=body.add_special_tokens)
        else:
            raise RequestError("send either prompt or messages", "prompt")
        return TokenizeReply(tokens=list(ids), count=len(ids))

    @router.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> DetokenizeReply:
        context.check_model(body.model)
        context.check_token_ids(body.tokens, "tokens")
        text = context.tokenizer_for("tokens").decode(body.tokens, skip_special_tokens=False)
        return DetokenizeReply(prompt=text)

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
        return Status(status="ready")

    @router.get("/metrics")
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
        dtype=str(info.dtype),
        state_dtype=str(info.state_dtype),
        bytes_per_state=info.bytes_per_state,
        slots=info.slots,
        weight_bytes=info.weight_bytes,
        has_tokenizer=context.service.tokenizer is not None,
    )
