"""From exceptions to HTTP answers: one table, one shape.

Every error leaves the server as `{"error": {"message", "type", "param", "code"}}`, the shape of the OpenAI API.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import Scope

from ostinato.engine.errors import (
    EngineStoppedError,
    NotFiniteError,
    OstinatoError,
    OtherDTypeError,
    OtherModelError,
    OtherTokenizerError,
    OtherWindowError,
    QueueFullError,
    RequestError,
    SlowReaderError,
    SnapshotFormatError,
    SnapshotValueError,
    StateDamagedError,
    StateIdError,
    StateNotFoundError,
    StateQuotaError,
    StepError,
    StoreFullError,
    StoreUnavailableError,
    TextNeedsTokenizerError,
)
from ostinato.server.validation import first_problem

INVALID = "invalid_request_error"
SERVER = "server_error"


class ModelNotFoundError(RequestError):
    """The request names a model that is not the served one."""


class ResponseNotFoundError(RequestError):
    """This API key has no such response: it was not stored, or its state is gone."""


class PreviousResponseNotFoundError(ResponseNotFoundError):
    """The response that a request wants to go on from is not there."""


class NotReadyError(OstinatoError):
    """A completion would not be served now."""


class InvalidKeyError(OstinatoError):
    """The request has no API key that this server knows. given: whether it has one at all."""

    def __init__(self, message: str, *, given: bool) -> None:
        super().__init__(message)
        self.given = given


class KeyNotAllowedError(OstinatoError):
    """The request's API key is good, but not for this."""


class RateLimitError(OstinatoError):
    """The request's API key has used up what it may. `retry_after` is in seconds; None: it is never going to fit."""

    def __init__(self, message: str, retry_after: float | None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StateGuardError(OstinatoError):
    """What was to be read into a state made it come apart."""


class ClientDisconnectedError(Exception):
    """Nobody waits for the answer any more. Never becomes a response."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How one kind of error leaves the server."""

    status: int
    type: str
    code: str


BY_TYPE: dict[type[Exception], Answer] = {
    ModelNotFoundError: Answer(404, INVALID, "model_not_found"),
    ResponseNotFoundError: Answer(404, INVALID, "response_not_found"),
    PreviousResponseNotFoundError: Answer(404, INVALID, "previous_response_not_found"),
    TextNeedsTokenizerError: Answer(400, INVALID, "tokenizer_required"),
    RequestError: Answer(400, INVALID, "invalid_value"),
    InvalidKeyError: Answer(401, INVALID, "invalid_api_key"),
    KeyNotAllowedError: Answer(403, INVALID, "insufficient_permissions"),
    RateLimitError: Answer(429, "rate_limit_error", "rate_limit_exceeded"),
    QueueFullError: Answer(429, "rate_limit_error", "queue_full"),
    StateGuardError: Answer(422, INVALID, "state_guard"),
    NotReadyError: Answer(503, SERVER, "not_ready"),
    EngineStoppedError: Answer(503, SERVER, "engine_stopped"),
    NotFiniteError: Answer(500, SERVER, "not_finite"),
    StepError: Answer(500, SERVER, "step_failed"),
    SlowReaderError: Answer(503, SERVER, "slow_reader"),
    SnapshotFormatError: Answer(400, INVALID, "state_invalid"),
    SnapshotValueError: Answer(400, INVALID, "state_not_finite"),
    OtherModelError: Answer(409, INVALID, "state_of_other_model"),
    OtherTokenizerError: Answer(409, INVALID, "state_of_other_tokenizer"),
    OtherDTypeError: Answer(409, INVALID, "state_of_other_dtype"),
    OtherWindowError: Answer(409, INVALID, "state_with_window"),
    StateIdError: Answer(400, INVALID, "state_id_invalid"),
    StateNotFoundError: Answer(404, INVALID, "state_not_found"),
    StateDamagedError: Answer(410, INVALID, "state_damaged"),
    StateQuotaError: Answer(429, "insufficient_quota", "state_quota_exceeded"),
    StoreFullError: Answer(507, SERVER, "state_store_full"),
    StoreUnavailableError: Answer(503, SERVER, "state_store_unavailable"),
    Exception: Answer(500, SERVER, "internal_error"),
}

BY_STATUS: dict[int, Answer] = {
    400: Answer(400, INVALID, "invalid_body"),
    404: Answer(404, INVALID, "not_found"),
    405: Answer(405, INVALID, "method_not_allowed"),
    413: Answer(413, INVALID, "body_too_large"),
    415: Answer(415, INVALID, "unsupported_media_type"),
    429: Answer(429, "rate_limit_error", "queue_full"),
    416: Answer(416, INVALID, "range_not_satisfiable"),
    431: Answer(431, INVALID, "headers_too_large"),
}

OUTCOMES: dict[type[Exception], str] = {
    InvalidKeyError: "unauthorized",
    KeyNotAllowedError: "unauthorized",
    RateLimitError: "limited",
    StateQuotaError: "limited",
}
"""How the metrics count what is refused for its API key: neither the client's request nor the server is at fault."""

STOPPED_RETRY_SECONDS = 5  # long enough for a restarted server to come up


def answer_for(error: Exception) -> Answer:
    """The table's row for the nearest base class."""
    return next(BY_TYPE[base] for base in type(error).__mro__ if base in BY_TYPE)


def error_body(message: str, answer: Answer, param: str | None = None) -> dict[str, object]:
    """`ErrorReply`, as JSON to be."""
    return {"error": {"message": message, "type": answer.type, "param": param, "code": answer.code}}


def describe(error: Exception) -> dict[str, object]:
    """The error body for an exception. What is not ours is not shown to the client: the log has it."""
    known = isinstance(error, OstinatoError)
    message = str(error) if known else "The server met an internal error; its log has the details."
    return error_body(message, answer_for(error), getattr(error, "field", None) if known else None)


def error_response(error: Exception) -> JSONResponse:
    return JSONResponse(describe(error), answer_for(error).status, headers=_headers_for(error))


def note_outcome(scope: Scope, error: Exception) -> None:
    """Has the request counted under its own outcome, where the status alone would not tell it."""
    if type(error) in OUTCOMES:
        scope.setdefault("state", {})["outcome"] = OUTCOMES[type(error)]


def _headers_for(error: Exception) -> dict[str, str]:
    """When to come back; or, as OpenAI's clients understand it, that it is no use. RFC 6750, section 3, for a 401."""
    if isinstance(error, InvalidKeyError):
        return {"www-authenticate": 'Bearer realm="ostinato"' + (', error="invalid_token"' if error.given else "")}
    if isinstance(error, StateQuotaError) or (isinstance(error, RateLimitError) and error.retry_after is None):
        return {"x-should-retry": "false"}
    if isinstance(error, QueueFullError | RateLimitError):
        return {"retry-after": str(max(1, math.ceil(error.retry_after or 0)))}
    if isinstance(error, EngineStoppedError):
        return {"retry-after": str(STOPPED_RETRY_SECONDS)}
    return {}


async def _on_ostinato_error(request: Request, error: Exception) -> JSONResponse:
    note_outcome(request.scope, error)
    return error_response(error)


async def _on_http_exception(request: Request, error: Exception) -> JSONResponse:
    """Starlette's own errors: unknown routes, wrong methods, unreadable bodies."""
    assert isinstance(error, HTTPException)
    answer = BY_STATUS.get(error.status_code, Answer(error.status_code, INVALID, "http_error"))
    route = f"{request.method} {request.url.path}"
    message = {
        404: f"There is no route {route}.",
        405: f"The route does not take this method: {route}.",
    }.get(error.status_code, str(error.detail))
    return JSONResponse(error_body(message, answer), error.status_code, headers=error.headers)


async def _on_validation_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    if isinstance(error.body, bytes):
        message = "The body must be JSON: send it with the header 'content-type: application/json'."
        return JSONResponse(error_body(message, BY_STATUS[415]), 415)
    param, message = first_problem(error.errors(), error.body)
    return JSONResponse(error_body(message, Answer(400, INVALID, "invalid_value"), param), 400)


def install_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(OstinatoError, _on_ostinato_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
