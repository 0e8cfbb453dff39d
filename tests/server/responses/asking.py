"""Requests for a response."""

from __future__ import annotations

from typing import Any

import httpx

PATH = "/v1/responses"
GREEDY = {"temperature": 0, "max_output_tokens": 6}


async def respond(client: httpx.AsyncClient, **body: Any) -> Any:
    """The answer to a short request, which must be a good one."""
    response = await client.post(PATH, json={**GREEDY, **body})
    assert response.status_code == 200, response.text
    return response.json()
