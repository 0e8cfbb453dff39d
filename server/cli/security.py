"""Options of `ostinato serve` that say who may use the server."""

from __future__ import annotations

from typing import Annotated

import typer

KEYS_VARIABLE = "OSTINATO_API_KEYS"
KEY_VARIABLE = "OSTINATO_API_KEY"


def _origins(values: list[str] | None) -> list[str]:
    from ostinato.server.security.layers import ORIGIN  # imports fastapi

    for value in values or []:
        if not ORIGIN.fullmatch(value):
            raise typer.BadParameter(f"{value!r} is not an origin: write https://example.org, without a path, or *")
    return values or []


ApiKeys = Annotated[
    str | None,
    typer.Option(
        "--api-keys",
        metavar="FILE",
        envvar=KEYS_VARIABLE,
        help="Serve only requests with an API key of this file, which `ostinato keys` makes.",
    ),
]
SingleKey = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        metavar="KEY",
        envvar=KEY_VARIABLE,
        help="Serve only requests with this API key. Better given in the environment: others see command lines.",
    ),
]
OpenMetrics = Annotated[bool, typer.Option("--open-metrics", help="Show /metrics to requests without an API key.")]
CorsOrigins = Annotated[
    list[str] | None,
    typer.Option(
        "--cors-origin",
        metavar="ORIGIN",
        callback=_origins,
        help="Let web pages of https://ORIGIN call the server from browsers; may be repeated; *: all.",
    ),
]
MaxConnections = Annotated[int, typer.Option(min=1, help="Connections at once.")]
