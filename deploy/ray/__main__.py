"""All devices of one machine, without a cluster: `python -m deploy.ray --devices cuda:0,cuda:1 model=... `.

Starts Ray on this machine, for as long as it runs, with nothing that it does not need.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Annotated

import ray
import typer
from ray import serve

from deploy.ray.app import app
from deploy.ray.options import RayOptions, parse_devices
from ostinato.engine.errors import RequestError

OBJECT_STORE = 256 * 2**20


def main(
    arguments: Annotated[list[str], typer.Argument(metavar="NAME=VALUE...", help="As with `serve run`.")],
    devices: Annotated[str, typer.Option(help="One replica for each: cpu,cpu or cuda:0,cuda:1.")] = "cpu",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
) -> None:
    """Serve on several devices until Ctrl-C or SIGTERM; both let running requests finish."""
    named = dict(argument.partition("=")[::2] for argument in arguments)
    try:
        device, indices = parse_devices(devices)
        replicas = len(indices)
        options = RayOptions.model_validate({**named, "device": device, "replicas": replicas})
    except (ValueError, RequestError) as error:
        raise typer.BadParameter(str(error)) from None
    if device == "cuda":
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(indices)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        num_cpus=replicas * (options.settings.engine.threads or 1),
        num_gpus=replicas if device == "cuda" else 0,
        object_store_memory=max(OBJECT_STORE, 2 * options.settings.max_state_bytes),
        include_dashboard=False,
    )
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    try:
        serve.start(http_options={"host": host, "port": port}, proxy_location="HeadOnly")
        serve.run(app(options))
        print(f"Ready at http://{host}:{port}", flush=True)
        stopped.wait()
        serve.shutdown()
    finally:
        ray.shutdown()


if __name__ == "__main__":
    typer.run(main)
