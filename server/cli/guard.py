"""Options of `ostinato serve` about the state guard and mitigations."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated

import typer

from ostinato.engine.guard import Reaction
from ostinato.engine.mitigation import Mitigation

StateGuard = Annotated[
    Reaction, typer.Option(help="When a state's norm is above the limit or not finite, unless the request says.")
]
NormLimit = Annotated[
    float | None, typer.Option("--state-norm-limit", help="Largest Frobenius norm of a head's state. Default: none.")
]
StateMitigations = Annotated[
    list[str] | None,
    typer.Option(
        "--state-mitigation",
        metavar="NAME=VALUE",
        help="For requests that name none: forget, remember, clip_norm, clip_every or window.",
    ),
]
WindowMemory = Annotated[
    bool,
    typer.Option("--state-window-memory", help="A second state for each slot, so that requests may ask for windows."),
]


def mitigation_options(given: list[str]) -> Mitigation:
    """From `NAME=VALUE`. Raises BadParameter: an unknown name, one given twice, or no number."""
    whole = {each.name: "int" in str(each.type) for each in fields(Mitigation)}
    found: dict[str, float | int] = {}
    for option in given:
        name, _, text = option.partition("=")
        if name not in whole or name in found:
            raise typer.BadParameter(f"{option!r}: each of {', '.join(whole)} may be given once")
        try:
            found[name] = int(text) if whole[name] else float(text)
        except ValueError:
            raise typer.BadParameter(f"{option!r}: {name} must be a number") from None
    return Mitigation(**found)  # type: ignore[arg-type]  # of the types that the fields have
