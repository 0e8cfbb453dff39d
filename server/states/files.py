"""GET and PUT /v1/states/{id}/content: stored states as files, to be taken elsewhere and brought back."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import Response, StreamingResponse

from ostinato.engine.errors import SnapshotFormatError
from ostinato.engine.states import Storing
from ostinato.engine.store.blobs import Data
from ostinato.server.api_schema import BYTES, STATE_FILE, STATES, Described, refusals
from ostinato.server.context import Context
from ostinato.server.states.job_states import expires_in, owner_of
from ostinato.server.states.replies import StateCard
from ostinato.server.states.routes import card, states_of

PIECE = 1 << 20  # bytes sent at once
IN_MEMORY = 1 << 24  # bytes of an upload that are not worth a temporary file
FILE: dict[str, Any] = {"content": {STATE_FILE: {"schema": BYTES}}}  # Any: parts of an OpenAPI document
DOWNLOADS: Described = {
    200: {"description": "The file", **FILE},
    206: {"description": "The part of the file that was asked for", **FILE},
    304: {"description": "The file is the one that the client has"},
    **refusals(*STATES, 416),
}
CONDITIONS = [
    {"in": "header", "name": name, "required": False, "schema": {"type": "string"}}
    for name in ("Range", "If-Range", "If-None-Match")
]
UPLOAD = {"requestBody": {"required": True, **FILE}}


def state_files_router(context: Context) -> APIRouter:
    router = APIRouter(responses=refusals(*STATES))

    @router.get(
        "/v1/states/{state_id}/content",
        response_class=Response,
        response_model=None,
        responses=DOWNLOADS,
        openapi_extra={"parameters": CONDITIONS},
    )
    async def download(state_id: str, request: Request) -> Response:
        """The file. Its ETag is its hash, so `If-None-Match` and `If-Range` hold for good."""
        record, content = await asyncio.to_thread(states_of(context).store.read, owner_of(request), state_id)
        etag = f'"{record.content}"'
        headers = {
            "etag": etag,
            "accept-ranges": "bytes",
            "content-disposition": f'attachment; filename="{record.id}.safetensors"',
        }
        if etag in _listed(request.headers.get("if-none-match", "")):
            return Response(status_code=304, headers=headers)
        wanted = request.headers.get("range")
        if wanted is not None and request.headers.get("if-range", etag) != etag:
            wanted = None
        part = _range(wanted, record.bytes)
        if part is None:
            return _send(content, range(record.bytes), 200, headers)
        if not part:
            raise HTTPException(
                416, "The range lies outside of the file.", {"content-range": f"bytes */{record.bytes}"}
            )
        headers["content-range"] = f"bytes {part.start}-{part.stop - 1}/{record.bytes}"
        return _send(content, part, 206, headers)

    @router.put("/v1/states/{state_id}/content", status_code=201, openapi_extra=UPLOAD)
    async def upload(
        state_id: str,
        request: Request,
        label: Annotated[list[str], Query()] = [],  # noqa: B006  # FastAPI copies it
        ttl: Annotated[float | None, Query(gt=0, le=1e10)] = None,
    ) -> StateCard:
        """Takes a file in that has the id as its hash: an altered one does not arrive."""
        states, owner = states_of(context), owner_of(request)
        with tempfile.SpooledTemporaryFile(IN_MEMORY) as file:
            found = f"st_{await _receive(request, file)}"
            if found != state_id:
                raise SnapshotFormatError(f"the file is not the state {state_id}: its hash makes it {found}")
            file.seek(0)
            content = await asyncio.to_thread(file.read)
        storing = Storing(expires=expires_in(ttl), labels=tuple(dict.fromkeys(label)))
        return card(await asyncio.to_thread(states.upload, owner, content, storing))

    return router


async def _receive(request: Request, file: BinaryIO | tempfile.SpooledTemporaryFile[bytes]) -> str:
    """Writes the body to a file as it comes. Returns its SHA-256 in hex."""
    digest = hashlib.sha256()
    async for piece in request.stream():
        digest.update(piece)
        await asyncio.to_thread(file.write, piece)
    return digest.hexdigest()


def _send(content: Data, part: range, status: int, headers: dict[str, str]) -> StreamingResponse:
    async def pieces() -> AsyncIterator[bytes]:
        view = memoryview(content)
        for start in range(part.start, part.stop, PIECE):
            yield bytes(view[start : min(start + PIECE, part.stop)])

    headers = {**headers, "content-length": str(len(part))}
    return StreamingResponse(pieces(), status, headers, media_type=STATE_FILE)


def _listed(header: str) -> list[str]:
    return [tag.strip().removeprefix("W/") for tag in header.split(",")]


def _range(header: str | None, size: int) -> range | None:
    """The bytes that a Range header names (RFC 9110, section 14.2): none for a file sent whole, empty for nowhere.

    Several ranges at once, or another unit, are answered with the whole file, as the standard allows.
    """
    unit, _, spec = (header or "").partition("=")
    first, dash, last = spec.strip().partition("-")
    digits = first + last
    # Headers come as Latin-1, in which the superscript digits are digits too, and no number to `int`.
    if unit.strip() != "bytes" or not dash or not (digits.isascii() and digits.isdigit()) or len(digits) > 36:
        return None
    if not first:
        return range(max(0, size - int(last)), size)
    if last and int(last) < int(first):
        return None
    return range(int(first), min(size, int(last) + 1 if last else size))
