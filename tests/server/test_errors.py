from __future__ import annotations

import json

import pytest

from ostinato.engine import errors as engine_errors
from ostinato.engine.errors import OstinatoError, QueueFullError, RequestError
from ostinato.server.errors import BY_TYPE, answer_for, error_response


def all_errors() -> list[type[OstinatoError]]:
    return [getattr(engine_errors, name) for name in engine_errors.__all__]


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)
def test_every_error_of_the_tree_has_a_status(kind: type[OstinatoError]) -> None:
    error = kind("what happened", 1.0) if kind is QueueFullError else kind("what happened")
    response = error_response(error)
    body = json.loads(bytes(response.body))["error"]
    assert body["message"] == "what happened"
    assert (response.status_code < 500) == (body["type"] != "server_error")
    assert 400 <= response.status_code < 600


def test_a_derived_error_takes_the_row_of_its_base() -> None:
    class NewError(RequestError):
        pass

    assert answer_for(NewError("x")) == BY_TYPE[RequestError]
    assert answer_for(KeyError("x")) == BY_TYPE[Exception]


@pytest.mark.parametrize(("wait", "header"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (1.01, "2"), (90.5, "91")])
def test_retry_after_is_a_whole_number_of_seconds_and_not_too_early(wait: float, header: str) -> None:
    assert error_response(QueueFullError("full", wait)).headers["retry-after"] == header


def test_only_our_own_errors_show_their_words() -> None:
    response = error_response(ValueError("a secret path"))
    assert response.status_code == 500
    assert b"secret" not in response.body
