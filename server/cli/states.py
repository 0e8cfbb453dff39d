"""`ostinato states`: looking after stored states without a server."""

from __future__ import annotations

from typing import Annotated

import typer

from ostinato.server.cli.serve import default_state_folder

states = typer.Typer(help="Look after stored states.", no_args_is_help=True)

Place = Annotated[str | None, typer.Argument(metavar="[PLACE]", help="As `serve --state-store`. Default: its default.")]


@states.callback()
def _group() -> None:
    """Keeps the subcommand's name: with one command only, typer would drop it."""


@states.command()
def repair(place: Place = None) -> None:
    """Read every record and state of a store; rebuild records that are lost, and set damaged states aside.

    Best run while no server writes there.
    """
    from ostinato.engine.store.blobs import open_blobs
    from ostinato.engine.store.state_store import StateStore, Tier

    store = StateStore([Tier(open_blobs(place or default_state_folder()))])
    report = store.repair()
    for record in report.rebuilt:
        typer.echo(f"rebuilt: the record of {record.id} ({record.tokens} tokens)")
    for what, keys in (("lost", report.lost), ("damaged", report.damaged), ("not a state", report.foreign)):
        for key in keys:
            typer.echo(f"{what}: {key}")
    (tier,) = store.usage()
    typer.echo(f"{tier.name}: {tier.states} states, {tier.contents} contents, {tier.bytes} bytes")
