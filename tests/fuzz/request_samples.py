"""Sound requests: bodies by their routes, URLs, and headers."""

from __future__ import annotations

from typing import Any

STATE = "{state}"  # stands for the id of a stored state, and for the one that an uploaded file has
COMPLETION = {
    "model": "tiny",
    "prompt": "Once upon a time",
    "max_tokens": 3,
    "n": 2,
    "logprobs": 2,
    "echo": True,
    "stop": ["\n\n"],
    "logit_bias": {"5": -1.5},
    "store": {"ttl": 60, "labels": ["a"]},
    "temperature": 0.5,
    "seed": 1,
    "return_token_ids": True,
}
REPEATED = {
    "repeat": {"times": 2, "context": "A fox.", "question": ["What?", "Who?"], "opening": ["a", "b"], "join": " "},
    "max_tokens": 2,
    "checkpoints": [],
}
MESSAGES = [
    {"role": "system", "content": "Be brief.", "checkpoint": "here"},
    {"role": "user", "content": [{"type": "text", "text": "Hello"}], "name": "a"},
]
CHAT = {
    "messages": MESSAGES,
    "max_completion_tokens": 3,
    "stream": True,
    "stream_options": {"include_usage": True},
    "logprobs": True,
    "top_logprobs": 2,
    "response_format": {"type": "text"},
    "store": True,
}
RESPONSE = {
    "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]}],
    "instructions": "Be brief.",
    "max_output_tokens": 3,
    "metadata": {"a": "b"},
    "text": {"format": {"type": "text"}},
    "tools": [],
    "store": 60.0,
}
BODIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("POST /v1/completions", COMPLETION),
    ("POST /v1/completions", {"prompt": [[1, 2, 3], [4, 5]], "max_tokens": 2, "best_of": 2, "prompt_logprobs": 1}),
    ("POST /v1/completions", {"state": STATE, "max_tokens": 2, "stream": True}),
    ("POST /v1/completions", REPEATED),
    ("POST /v1/chat/completions", CHAT),
    ("POST /v1/chat/completions", {"messages": [{**MESSAGES[1], "part": "context"}], "repeat": 2, "max_tokens": 1}),
    ("POST /v1/responses", RESPONSE),
    ("POST /v1/responses", {"input": "Hi", "previous_response_id": "resp_1", "stream": True}),
    ("POST /v1/prompts/preview", {"messages": MESSAGES, "state": STATE}),
    ("POST /v1/prompts/preview", REPEATED),
    ("POST /v1/states", {"prompt": [1, 2, 3], "labels": ["a"], "ttl": 9, "checkpoints": {"x": 2}, "private": True}),
    ("POST /v1/states", {"messages": MESSAGES, "pinned": False, "lossy": True, "priority": 3}),
    (f"POST /v1/states/{STATE}", {"labels": ["b"], "pinned": False, "ttl": 0}),
    (f"POST /v1/states/{STATE}/fork", {"n": 2, "labels": ["a", "b"]}),
    (f"POST /v1/states/{STATE}/rewind", {"tokens": 2, "labels": ["a"], "ttl": 5}),
    ("POST /tokenize", {"prompt": "Hello", "add_special_tokens": False}),
    ("POST /detokenize", {"tokens": [1, 2, 3]}),
)
URLS = (
    "GET /v1/states?limit=5&label=a&parent=b&after=c",
    f"GET /v1/states/{STATE}",
    f"GET /v1/states/{STATE}/tree?limit=3",
    f"GET /v1/states/{STATE}/content",
    f"PUT /v1/states/{STATE}/content?label=a&label=b&ttl=3.5",
    "GET /v1/prompts/preview?prompt=Hello&max_tokens=3&stop=%5B%22a%22%5D&repeat=2",
    'GET /v1/prompts/preview?messages=[{"role":"user","content":"a"}]',
    "GET /v1/models/tiny",
    "DELETE /v1/responses/resp_1",
    "DELETE /v1/states/st_0",
    "GET /metrics",
    "OPTIONS /v1/completions",
)
CONTENT = f"GET /v1/states/{STATE}/content"
HEADERS = (
    (CONTENT, "range: bytes=0-99"),
    (CONTENT, "range: bytes=-5"),
    (CONTENT, "range: bytes=7-\nif-range: x"),
    (CONTENT, 'if-none-match: W/"a", "b"'),
    ("GET /v1/states", "authorization: Bearer key-1\nx-request-id: a.b"),
    ("POST /tokenize", "content-type: application/json; charset=utf-8"),
    ("POST /v1/states", "content-length: 12\ncontent-type: multipart/form-data; boundary=x"),
)
