"""/v1/prompts/preview: the exact prompt of a request, its text and its tokens, without running anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from ostinato.engine.errors import RequestError
from ostinato.server.api_schema import BODY, STATES, refusals
from ostinato.server.context import Context
from ostinato.server.prompts import Tokens, chat_prompt, completion_prompts
from ostinato.server.protocol import ChatRequest, CompletionRequest
from ostinato.server.responses.protocol import ResponseRequest
from ostinato.server.responses.routes import encode_input, load_states
from ostinato.server.states.job_states import JobStates, job_states
from ostinato.server.validation import StrictJsonRoute, WireModel

KINDS = ("CompletionRequest", "ChatRequest", "ResponseRequest")
BODIES = {
    "requestBody": {
        "content": {
            "application/json": {"schema": {"anyOf": [{"$ref": f"#/components/schemas/{kind}"} for kind in KINDS]}}
        }
    }
}
FIELDS = {
    "parameters": [
        {
            "in": "query",
            "name": "fields",
            "description": "The fields of such a request: texts as they are, everything else as JSON",
            "schema": {"type": "object", "additionalProperties": {"type": "string"}},
        }
    ]
}
AnyRequest = CompletionRequest | ChatRequest | ResponseRequest
Body = TypeVar("Body", bound=WireModel)

TEXT_FIELDS = frozenset(
    {"model", "prompt", "state", "initial_state", "input", "instructions", "previous_response_id", "user"}
)


class PromptPreview(BaseModel):
    """One prompt. state_tokens: that the state behind which it stands has read; they are not in `token_ids`.

    first_reading: so many of `token_ids` are the first reading of what is read again, and there the prefix cache keeps
    the state; None where nothing is, or where the state is that reading. text: None without a tokenizer.
    prompt_tokens: as `usage` will count them.
    """

    text: str | None
    token_ids: list[int]
    state_tokens: int
    first_reading: int | None
    prompt_tokens: int


class PreviewReply(BaseModel):
    prompts: list[PromptPreview]
    prompt_tokens: int


def preview_router(context: Context) -> APIRouter:
    router = APIRouter(route_class=StrictJsonRoute, responses=refusals(*BODY, *STATES))

    @router.post("/v1/prompts/preview", openapi_extra=BODIES)
    async def preview(body: dict[str, object], request: Request) -> PreviewReply:
        return await _preview(context, request, _parse(body, "body"))

    @router.get("/v1/prompts/preview", openapi_extra=FIELDS)
    async def get_preview(request: Request) -> PreviewReply:
        return await _preview(context, request, _parse(_fields_of(request), "query"))

    return router


def _parse(fields: Mapping[str, object], where: str) -> AnyRequest:
    """The request whose body this is: of chat, of responses or, without their fields, of completions."""
    if "messages" in fields:
        return _validate(ChatRequest, fields, where)
    if fields.keys() & {"input", "instructions", "previous_response_id"}:
        return _validate(ResponseRequest, fields, where)
    return _validate(CompletionRequest, fields, where)


def _validate(kind: type[Body], fields: Mapping[str, object], where: str) -> Body:
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        errors = [{**item, "loc": (where, *item["loc"])} for item in error.errors()]
        raise RequestValidationError(errors, body=fields) from None


def _fields_of(request: Request) -> dict[str, object]:
    """The query's fields: texts as they are, everything else as JSON. Raises RequestError."""
    fields: dict[str, object] = {}
    for name, value in request.query_params.multi_items():
        if name in fields:
            raise RequestError(f"{name}: given twice", name)
        try:
            fields[name] = value if name in TEXT_FIELDS else from_json(value, allow_inf_nan=False)
        except ValueError:
            raise RequestError(f"{name}: not valid JSON in the query", name) from None
    return fields


async def _preview(context: Context, request: Request, body: AnyRequest) -> PreviewReply:
    context.check_model(body.model)
    if isinstance(body, ResponseRequest):
        states = await load_states(context, body, request, None)
        prompts = [await encode_input(context, body, states)]
    else:
        states = await job_states(context, request, state=body.state, initial=body.initial_state, storing=None)
        if isinstance(body, ChatRequest):
            prompts = [await chat_prompt(context, body.messages, states, body.repeat)]
        else:
            prompts = await completion_prompts(context, body, states)
    shown = [_shown(context, ids, number, states) for number, ids in enumerate(prompts)]
    return PreviewReply(prompts=shown, prompt_tokens=sum(prompt.prompt_tokens for prompt in shown))


def _shown(context: Context, ids: Tokens, number: int, states: JobStates) -> PromptPreview:
    context.check_token_ids(ids, "prompt")
    before, tokenizer = states.tokens_before, context.service.tokenizer
    text = None
    if tokenizer is not None:
        text = tokenizer.decode(ids, skip_special_tokens=False, continues=states.start is not None)
    stops = states.stops[number] if states.stops else ()
    return PromptPreview(
        text=text,
        token_ids=list(ids),
        state_tokens=before,
        first_reading=next(iter(stops), None),
        prompt_tokens=before + len(ids),
    )
