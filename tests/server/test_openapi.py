"""The live server against its own description: `schemathesis` makes requests from /openapi.json and checks the answers.

Requests that the description allows are not always accepted, and `positive_data_acceptance` is therefore not checked:
token ids must be of the vocabulary, some fields exclude each other, and ranges are the engine's, not the description's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.checks import CHECKS as KNOWN
from schemathesis.checks import load_all_checks

from tests.server.harness import TIMEOUT, live_server, real_service

load_all_checks()


@schemathesis.serializer("application/vnd.safetensors")
def send_file(context: schemathesis.SerializationContext, value: object) -> object:
    """The bytes that were made, as they are."""
    del context
    return value if isinstance(value, bytes) else getattr(value, "data", b"")


CHECKS = KNOWN.get_by_names(
    [
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
        "negative_data_rejection",
        "unsupported_method",
        "allow_header_conformance",
    ]
)
OPERATIONS = (
    "POST /v1/completions",
    "POST /v1/chat/completions",
    "POST /v1/responses",
    "DELETE /v1/responses/{response_id}",
    "GET /v1/states",
    "POST /v1/states",
    "GET /v1/states/{state_id}",
    "POST /v1/states/{state_id}",
    "DELETE /v1/states/{state_id}",
    "GET /v1/states/{state_id}/tree",
    "POST /v1/states/{state_id}/fork",
    "POST /v1/states/{state_id}/rewind",
    "GET /v1/states/{state_id}/content",
    "PUT /v1/states/{state_id}/content",
    "POST /tokenize",
    "POST /detokenize",
    "POST /v1/prompts/preview",
    "GET /v1/prompts/preview",
    "GET /v1/models",
    "GET /v1/models/{name}",
    "GET /health",
    "GET /ready",
    "GET /metrics",
)
# Of the others nothing can be invalid: they take nothing, or ids, which may be any text.
REFUSING = [operation for operation in OPERATIONS if operation.startswith("POST")]
REFUSING += ["GET /v1/states", "GET /v1/states/{state_id}/tree", "PUT /v1/states/{state_id}/content"]
MOST_TOKENS = 4
MOST_FORKS = 8
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
SEED = 7


class Live:
    """A server, its schema, and a state that it keeps."""

    def __init__(self, url: str) -> None:
        self.url = url
        description = requests.get(f"{url}/openapi.json", timeout=TIMEOUT).json()
        self.schema = schemathesis.openapi.from_dict(description)
        self.state = self._post("/v1/states", prompt="Once upon a time")["id"]
        self.response = self._post("/v1/responses", input="Hello", max_output_tokens=1)["id"]

    def _post(self, path: str, **body: Any) -> Any:
        reply = requests.post(self.url + path, json=body, timeout=TIMEOUT)
        reply.raise_for_status()
        return reply.json()


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    store = str(tmp_path_factory.mktemp("states"))
    service = real_service(prefix_cache=1 << 20)
    with live_server(service, state_store=(store,), chat_max_tokens=MOST_TOKENS) as url:
        yield Live(url)


def test_every_operation_is_tried(live: Live) -> None:
    described = {
        f"{method.upper()} {path}" for path, item in live.schema.raw_schema["paths"].items() for method in item
    }
    assert described == set(OPERATIONS)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_answers_to_valid_requests_are_as_described(live: Live, operation: str) -> None:
    check_answers(live, operation, GenerationMode.POSITIVE, examples=5, seed=SEED)


@pytest.mark.parametrize("operation", REFUSING)
def test_invalid_requests_are_refused_as_described(live: Live, operation: str) -> None:
    check_answers(live, operation, GenerationMode.NEGATIVE, examples=5, seed=SEED)


@pytest.mark.long
@pytest.mark.parametrize("operation", OPERATIONS)
def test_answers_to_many_requests_are_as_described(live: Live, operation: str) -> None:
    check_answers(live, operation, GenerationMode.POSITIVE, examples=20, seed=SEED + 1)
    if operation in REFUSING:
        check_answers(live, operation, GenerationMode.NEGATIVE, examples=20, seed=SEED + 1)


def check_answers(live: Live, operation: str, mode: GenerationMode, *, examples: int, seed: int) -> None:
    method, path = operation.split(" ")
    described = live.schema[path][method]
    print(f"seed {seed}")

    @hypothesis.seed(seed)
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=described.as_strategy(mode), named=st.booleans())
    def tries(case: Case, named: bool) -> None:
        bound_answer(case)
        if named:
            name_what_there_is(case, live)
        case.call_and_validate(base_url=live.url, checks=CHECKS, timeout=TIMEOUT)

    tries()


def bound_answer(case: Case) -> None:
    """A valid request may ask for two thousand million tokens, or for a thousand forks. This one does not."""
    if not isinstance(case.body, dict):
        return
    if isinstance(case.body.get("n"), int) and case.path.endswith("/fork"):
        case.body["n"] = min(case.body["n"], MOST_FORKS)
    for name in LIMITS:
        if isinstance(case.body.get(name), int) and case.body[name] > MOST_TOKENS:
            case.body[name] = MOST_TOKENS
    if case.body.get("max_tokens") is None and "ignore_eos" in case.body:
        del case.body["ignore_eos"]


def name_what_there_is(case: Case, live: Live) -> None:
    """Random ids are of nothing: valid requests would seldom get beyond that."""
    known = {"state_id": live.state, "response_id": live.response, "name": "tiny"}
    for name in case.path_parameters or {}:
        if case.method != "DELETE":
            case.path_parameters[name] = known[name]
    if isinstance(case.body, dict):
        if isinstance(case.body.get("model"), str):
            case.body["model"] = "tiny"
        if isinstance(case.body.get("state"), str):
            case.body["state"] = live.state
        for name in ("initial_state", "previous_response_id"):
            case.body.pop(name, None)
