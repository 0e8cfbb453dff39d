"""Who a request is from, and whether its API key may still make it."""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ostinato.engine.errors import OstinatoError
from ostinato.server.errors import InvalidKeyError, KeyNotAllowedError, error_response, note_outcome
from ostinato.server.security.api_keys import ApiKey
from ostinato.server.security.key_file import Keys
from ostinato.server.security.meters import Meter, Meters

PROBES = frozenset({"/health", "/ready"})
METRICS = "/metrics"


class Authentication:
    """Pure ASGI middleware: answers requests without a good key with 401, and those beyond its limits with 429.

    The others go on with the key's owner in `scope["state"]["owner"]`. Nothing of a body is read before. Probes need no
    key, and with `open_metrics` neither do the metrics; every other path does, also one that does not exist.
    """

    def __init__(self, app: ASGIApp, keys: Keys, meters: Meters, open_metrics: bool) -> None:
        self.app = app
        self.keys = keys
        self.meters = meters
        self.open_paths = PROBES | {METRICS} if open_metrics else PROBES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in self.open_paths:
            await self.app(scope, receive, send)
            return
        try:
            key = self._authenticate(scope)
        except OstinatoError as error:
            await _refuse(error, scope, receive, send)
            return
        meter = self.meters.limited(key.owner, key.limits)
        await self._pass(key.owner, meter, scope, receive, _with_limits(send, meter))

    async def _pass(self, owner: str, meter: Meter, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            meter.enter()
        except OstinatoError as error:
            await _refuse(error, scope, receive, send)
            return
        try:
            scope.setdefault("state", {})["owner"] = owner
            await self.app(scope, receive, send)
        finally:
            meter.leave()

    def _authenticate(self, scope: Scope) -> ApiKey:
        """Raises InvalidKeyError, KeyNotAllowedError. Never repeats what was sent: it may be a key of elsewhere."""
        scheme, _, presented = Headers(scope=scope).get("authorization", "").partition(" ")
        presented = presented.strip()
        if scheme.lower() != "bearer" or not presented:
            message = "This server needs an API key: send it in the header 'Authorization: Bearer KEY'."
            raise InvalidKeyError(message, given=False)
        found = self.keys.current().find(presented)
        if found is None:
            raise InvalidKeyError("Incorrect API key provided.", given=True)
        key, secret = found
        if secret.is_expired(self.keys.clock()):
            raise InvalidKeyError("This API key has expired.", given=True)
        if scope["path"] == METRICS and not key.metrics:
            raise KeyNotAllowedError("This API key may not read the metrics.")
        return key


async def _refuse(error: OstinatoError, scope: Scope, receive: Receive, send: Send) -> None:
    note_outcome(scope, error)
    await error_response(error)(scope, receive, send)


def _with_limits(send: Send, meter: Meter) -> Send:
    async def send_with_limits(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(raw=message["headers"]).update(meter.headers())
        await send(message)

    return send_with_limits
