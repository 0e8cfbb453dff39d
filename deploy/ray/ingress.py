"""What Ray's proxy calls: reads a request, names the state that it goes on from, and passes it to a replica."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prometheus_client import CONTENT_TYPE_LATEST
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Mount

from deploy.ray.metrics import merged
from deploy.ray.states import state_of
from ostinato.engine.errors import EngineStoppedError, OstinatoError, QueueFullError
from ostinato.server.errors import ClientDisconnectedError, describe, error_response
from ostinato.server.replies import ErrorReply
from ostinato.server.responses.replies import ErrorEvent
from ostinato.server.security.body_limit import BodyLimit
from ostinato.server.sse import until_disconnect

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from ostinato.server.settings import ServerSettings

PLAIN = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "headers", "client")
RETRY_SECONDS = 1.0
METRICS_SECONDS = 5.0  # that each replica has to tell its metrics


@serve.ingress()
class Ingress:
    """See the module."""

    def __init__(self, replicas: DeploymentHandle, settings: ServerSettings) -> None:
        self.replicas = replicas
        self.settings = settings

    def __serve_build_asgi_app__(self) -> ASGIApp:
        limits = {"max_bytes": self.settings.max_body_bytes, "max_state_bytes": self.settings.max_state_bytes}
        return Starlette(routes=[Mount("", app=BodyLimit(Forwarding(self.replicas), **limits))])


class Forwarding:
    """An ASGI application that is answered by replicas."""

    def __init__(self, replicas: DeploymentHandle) -> None:
        self.replicas = replicas
        self.answer = replicas.options(method_name="answer", stream=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await read_body(receive)
            plain = {name: scope[name] for name in PLAIN if name in scope}
            if (scope["method"], scope["path"]) == ("GET", "/metrics"):
                return await (await self._metrics(plain))(scope, receive, send)
            messages = self.answer.remote(plain, body, state=state_of(scope["path"], body))
            await until_disconnect(receive, Relay(scope, receive, send).run(messages))
        except ClientDisconnectedError:
            return None

    async def _metrics(self, scope: dict[str, Any]) -> Response:
        """Of all replicas that answer; where none does, what one of them says instead."""
        call = self.replicas.broadcast("whole", scope)
        told = await call.results_async(timeout_s=METRICS_SECONDS, return_exceptions=True)
        answers = [each for each in told if not isinstance(each, BaseException)]
        texts = {name: body.decode() for name, status, body in answers if status == 200}
        if texts or not answers:
            return Response(merged(texts), media_type=CONTENT_TYPE_LATEST)
        _, status, body = answers[0]
        return Response(body, status, media_type="application/json")


class Relay:
    """Passes the messages of one answer on, and ends it with an error where the replica cannot."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.receive = receive
        self.send = send
        self.sent = 0  # messages of the body
        self.streams: bool | None = None  # events; None before the status line

    async def run(self, messages: DeploymentResponseGenerator) -> None:
        """Cancelling it cancels the request on the replica."""
        try:
            async for message in messages:
                await self._pass(message)
        except BackPressureError:
            await self._fail(QueueFullError("the queue is full: too many requests wait for replicas", RETRY_SECONDS))
        except (RayActorError, DeploymentUnavailableError) as error:
            await self._fail(
                EngineStoppedError(
                    "the replica that worked on this request is gone; send the request again: a conversation goes on "
                    "from its last stored turn"
                ),
                error,
            )
        finally:
            messages.cancel()

    async def _pass(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.streams = dict(message["headers"]).get(b"content-type", b"").startswith(b"text/event-stream")
        else:
            self.sent += 1
        await self.send(message)

    async def _fail(self, error: OstinatoError, cause: Exception | None = None) -> None:
        """A status if there was none, an event in a stream of events; anything else is cut off."""
        if self.streams is None:
            await error_response(error)(self.scope, self.receive, self.send)
        elif self.streams:
            await self.send({"type": "http.response.body", "body": self._event(error), "more_body": False})
        else:
            raise error from cause

    def _event(self, error: OstinatoError) -> bytes:
        reply = ErrorReply.model_validate(describe(error))
        if self.scope["path"] != "/v1/responses":
            return f"data: {reply.model_dump_json()}\n\n".encode()
        told = reply.error
        event = ErrorEvent(sequence_number=self.sent, code=told.code, message=told.message, param=told.param)
        return f"event: {event.type}\ndata: {event.model_dump_json()}\n\n".encode()


async def read_body(receive: Receive) -> bytes:
    """Raises ClientDisconnectedError."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnectedError
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(body)
