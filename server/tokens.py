"""POST /tokenize and /detokenize: between text and token ids, without the model."""

from __future__ import annotations

from fastapi import APIRouter

from ostinato.engine.errors import RequestError
from ostinato.server.api_schema import BODY, refusals
from ostinato.server.context import Context
from ostinato.server.prompts import chat_prompt
from ostinato.server.protocol import DetokenizeRequest, TokenizeRequest
from ostinato.server.replies import DetokenizeReply, TokenizeReply
from ostinato.server.validation import StrictJsonRoute


def tokens_router(context: Context) -> APIRouter:
    router = APIRouter(route_class=StrictJsonRoute, responses=refusals(*BODY, 404))

    @router.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> TokenizeReply:
        context.check_model(body.model)
        if body.messages is not None and body.prompt is None:
            ids = await chat_prompt(context, body.messages)
        elif body.prompt is not None and body.messages is None:
            (ids,) = await context.encode([body.prompt], "prompt", special=body.add_special_tokens)
        else:
            raise RequestError("send either prompt or messages", "prompt")
        return TokenizeReply(tokens=list(ids), count=len(ids))

    @router.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> DetokenizeReply:
        context.check_model(body.model)
        context.check_token_ids(body.tokens, "tokens")
        text = context.tokenizer_for("tokens").decode(body.tokens, skip_special_tokens=False)
        return DetokenizeReply(prompt=text)

    return router
