"""Which replica gets a request."""

from __future__ import annotations

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from deploy.ray.states import ranked


class StateRouter(RequestRouter):
    """To a replica that holds the state which the request goes on from, and otherwise to the least loaded one.

    A replica that works on all that it may at once is left out, whatever it holds: the others load the state from the
    store. The request names its state in the keyword argument `state`.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """In ranks: of the first that has one with room, the base class takes the replica with the fewest requests."""
        if pending_request is None:
            return ranked(candidate_replicas, None)
        pending_request.routing_context.should_backoff = True  # while all are full; not to is not to wait at all
        return ranked(candidate_replicas, pending_request.kwargs.get("state"))
