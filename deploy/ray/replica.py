"""One replica: the server, with an engine of its own, in a process of Ray's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from ray import serve

from deploy.ray.states import REPORTED, STATES, short

if TYPE_CHECKING:
    from starlette.types import Message, Scope

    from ostinato.server.settings import ServerSettings

NAME_HEADER = b"x-ostinato-replica"


class Replica:
    """Answers whole requests as the application does, message by message."""

    async def __init__(self, settings: ServerSettings) -> None:  # type: ignore[misc]  # Ray awaits it
        from ostinato.engine.loading import load_service  # imports torch, which only replicas need
        from ostinato.server.app import create_app

        self.service = await asyncio.to_thread(load_service, settings.engine)
        self.app = create_app(self.service, settings)
        self.name = serve.get_replica_context().replica_id.unique_id.encode()
        self.lifespan = self.app.router.lifespan_context(self.app)
        await self.lifespan.__aenter__()
        while not self.service.ready and self.service.healthy:
            await asyncio.sleep(0.05)

    async def answer(self, scope: Scope, body: bytes, state: str | None) -> AsyncGenerator[Message, None]:
        """The messages that the application sends. state: that the request goes on from; the router has read it.

        Closing the generator, or cancelling its task, is to the application a client that has gone away.
        """
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        gone = asyncio.Event()
        request: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if request:
                return request.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        task = asyncio.ensure_future(self.app(scope, receive, messages.put))
        task.add_done_callback(lambda _: messages.put_nowait(None))
        try:
            while (message := await messages.get()) is not None:
                yield self._named(message) if message["type"] == "http.response.start" else message
            await task
        finally:
            gone.set()
            await asyncio.wait({task})

    def _named(self, start: Message) -> Message:
        """With the replica's name, and without the request's id: Ray's proxy adds the same one."""
        headers = [(name, value) for name, value in start["headers"] if name != b"x-request-id"]
        return {**start, "headers": [*headers, (NAME_HEADER, self.name)]}

    async def whole(self, scope: Scope) -> tuple[str, int, bytes]:
        """The answer to a request without a body, in one piece: this replica's name, the status and the body."""
        start, *rest = [message async for message in self.answer(scope, b"", None)]
        return self.name.decode(), start["status"], b"".join(message.get("body", b"") for message in rest)

    def record_routing_stats(self) -> dict[str, list[str]]:
        """Called by Ray now and then, for the router."""
        states = self.app.state.context.states
        return {STATES: [] if states is None else [short(state_id) for state_id in states.recent(REPORTED)]}

    def check_health(self) -> None:
        """Called by Ray, which replaces the replica when this raises."""
        if not self.service.healthy:
            raise RuntimeError("the engine loop is not running")

    async def __del__(self) -> None:
        """Called and awaited by Ray, once the running requests have ended or `drain_seconds` are over."""
        await self.lifespan.__aexit__(None, None, None)
