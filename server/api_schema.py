"""What /openapi.json says beyond what the signatures of the routes do: refusals, streams, files.

Every status that a route may answer with is named at the route, by `refusals`; what each means is read from the tables
of `ostinato.server.errors`, so that the description cannot differ from the answers.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from ostinato.server.errors import BY_STATUS, BY_TYPE
from ostinato.server.replies import ErrorReply

Described = dict[int | str, dict[str, Any]]  # Any: parts of an OpenAPI document

STREAM = "text/event-stream"
STATE_FILE = "application/vnd.safetensors"
BYTES = {"type": "string", "format": "binary"}
EVERYWHERE = (401, 405, 413, 429, 431, 500)
BODY = (400, 415)
GENERATION = (404, 409, 410, 429, 503, 507)
STATES = (400, 404, 409, 410, 503, 507)


def refusals(*statuses: int) -> Described:
    """For `responses=` of a router or a route: these statuses, and those that any route may answer with."""
    return {
        status: {"model": ErrorReply, "description": ", ".join(_codes(status))}
        for status in sorted({*statuses, *EVERYWHERE})
    }


def answers(whole: type[BaseModel], event: str) -> Described:
    """Of a route that answers with `whole`, or with `stream` as events; `event` says what they hold."""
    return {
        200: {
            "model": whole,
            "description": f"The answer, or with `stream` {event}",
            "content": {STREAM: {"schema": {"type": "string"}}},
        }
    }


def _codes(status: int) -> list[str]:
    rows = [*BY_TYPE.values(), *BY_STATUS.values()]
    return sorted({row.code for row in rows if row.status == status})


def describe_refusals_only(app: FastAPI) -> None:
    """Leaves out FastAPI's own description of an invalid request, with status 422: here it is a 400."""
    make = app.openapi

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _without_422(make())
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]  # the way that FastAPI's documentation gives


def _without_422(schema: dict[str, Any]) -> dict[str, Any]:
    for path in schema["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        schema["components"]["schemas"].pop(name, None)
    return schema
