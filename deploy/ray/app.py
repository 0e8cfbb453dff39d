"""The application that Ray Serve runs: `serve run deploy.ray.app:app model=demo state_store=/mnt/states replicas=2`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig

from deploy.ray.ingress import Ingress
from deploy.ray.options import RayOptions
from deploy.ray.replica import Replica
from deploy.ray.router import StateRouter

if TYPE_CHECKING:
    from ray.serve import Application

ROUTING_SECONDS = 1.0  # between a replica's reports of the states that it holds
HEALTH_SECONDS = 5.0
MANY = 10_000  # requests that an ingress passes on at once


def app(args: RayOptions) -> Application:
    """Replicas of the server behind an ingress."""
    settings = args.settings
    replicas = serve.deployment(Replica, **replica_options(args)).bind(settings)
    ingress = serve.deployment(
        Ingress, num_replicas=args.ingresses, max_ongoing_requests=MANY, ray_actor_options={"num_cpus": 0}
    )
    return ingress.bind(replicas, settings)


def replica_options(args: RayOptions) -> dict[str, Any]:
    """Of the deployment: as Ray names them. Any: they are of many types.

    A replica takes as many requests as it has slots, and `queue_depth` more that wait for one. Others wait where they
    can still go to any replica. On average so many is also what autoscaling aims at.
    """
    engine = args.settings.engine
    busy = args.max_batch + args.queue_depth
    options: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": engine.threads or 1, "num_gpus": 1 if args.device == "cuda" else 0},
        "max_ongoing_requests": busy,
        "max_queued_requests": max(1, engine.max_queue),  # Ray knows no queue of none
        "graceful_shutdown_timeout_s": args.settings.drain_seconds,
        "health_check_period_s": HEALTH_SECONDS,
        "request_router_config": RequestRouterConfig(
            request_router_class=StateRouter, request_routing_stats_period_s=ROUTING_SECONDS
        ),
    }
    if args.max_replicas is None:
        return options | {"num_replicas": args.replicas}
    return options | {
        "autoscaling_config": AutoscalingConfig(
            min_replicas=args.replicas, max_replicas=args.max_replicas, target_ongoing_requests=busy
        )
    }
