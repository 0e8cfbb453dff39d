"""Reading JSON bodies strictly, and saying which field is wrong in the words of the request."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute
from pydantic import (
    BaseModel,
    ConfigDict,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError, from_json


class WireModel(BaseModel):
    """Base of every request and of every object inside one."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, json_schema_extra=lambda schema: _describe_nulls(schema)
    )

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        """Clients of the OpenAI API send null for what the user left unset."""
        if isinstance(value, dict):
            return {key: item for key, item in value.items() if item is not None}
        return value


def _describe_nulls(schema: dict[str, Any]) -> None:
    """Says of every field that may be left out that it may be null."""
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        if name not in required and {"type": "null"} not in field.get("anyOf", ()):
            about = {key: field.pop(key) for key in ("title", "default", "description") if key in field}
            options = field.pop("anyOf", None) or [dict(field)]
            field.clear()
            field |= {"anyOf": [*options, {"type": "null"}], **about}


class StrictJsonRequest(Request):
    """A request whose body is JSON by the standard.

    The parser of the Python library takes NaN, half surrogate pairs and any depth; each of them would fail later, as
    an error of the server.
    """

    async def json(self) -> object:
        """Raises HTTPException: 400, the body is not JSON."""
        try:
            return from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            raise HTTPException(400, f"The body is not valid JSON: {error}.") from None


class StrictJsonRoute(APIRoute):
    """A route that reads its body through `StrictJsonRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def read_strictly(request: Request) -> Response:
            return await handle(StrictJsonRequest(request.scope, request.receive))

        return read_strictly


def must_be(description: str) -> WrapValidator:
    """A validator that answers any mismatch with one sentence, where a union would list a complaint per member."""

    def check(value: object, inner: ValidatorFunctionWrapHandler) -> object:
        try:
            return inner(value)
        except ValidationError:
            raise PydanticCustomError("must_be", "must be {expected}", {"expected": description}) from None

    return WrapValidator(check)


def first_problem(errors: Sequence[Any], body: object) -> tuple[str | None, str]:
    """The field and the sentence for the most specific of pydantic's errors.

    Of a union's members the one that got deepest into the value is the one that was meant.
    """
    error = max(errors, key=lambda item: len(item["loc"]))
    path = _path_in_body(error["loc"][1:], body, missing=error["type"] == "missing")
    if not path:
        return None, "The body must be a JSON object."
    if error["type"] == "extra_forbidden":
        return path, f"{path}: this field is unknown or not supported."
    return path, f"{path}: {error['msg']}."


def _path_in_body(location: Sequence[str | int], body: object, *, missing: bool) -> str:
    """`messages[0].content` from pydantic's location, which also names union members: those are not in the body."""
    path = ""
    for key in location:
        if isinstance(body, Mapping) and body.get(str(key)) is not None:
            path, body = f"{path}.{key}", body[key]
        elif isinstance(body, list) and isinstance(key, int) and key < len(body):
            path, body = f"{path}[{key}]", body[key]
        elif missing and key == location[-1]:
            path = f"{path}.{key}"
    return path.removeprefix(".")
