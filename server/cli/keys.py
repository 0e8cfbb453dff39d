"""`ostinato keys`: the API keys of a server, and what each may do."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ostinato.engine.errors import RequestError
from ostinato.server.cli.options import parse_size
from ostinato.server.cli.security import KEYS_VARIABLE
from ostinato.server.units import parse_seconds

if TYPE_CHECKING:
    from ostinato.server.security.api_keys import ApiKey, KeyLimits, Secret

keys = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)


def default_key_file() -> str:
    """By the XDG base directory specification: `$XDG_CONFIG_HOME/ostinato/keys.json`."""
    home = os.environ.get("XDG_CONFIG_HOME", "")
    return str((Path(home) if home else Path.home() / ".config") / "ostinato" / "keys.json")


def parse_duration(text: str) -> float:
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


Name = Annotated[str, typer.Argument(help="Whose key it is: letters, digits and . _ @ + -")]
KeyFile = Annotated[
    str | None,
    typer.Option("--file", envvar=KEYS_VARIABLE, help="Default: ostinato/keys.json in $XDG_CONFIG_HOME or ~/.config."),
]
Expires = Annotated[
    float | None,
    typer.Option("--expires", parser=parse_duration, metavar="TIME", help="The key ends after 90s, 15m, 12h or 30d."),
]


@keys.command()
def create(
    name: Name,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="Default: no limit.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=1, help="Read and generated.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Requests at once.")] = None,
    state_bytes: Annotated[
        int | None, typer.Option(parser=parse_size, metavar="SIZE", help="Of states in the store: 512M, 2GiB.")
    ] = None,
    expires: Expires = None,
    metrics: Annotated[bool, typer.Option("--metrics", help="It may read /metrics.")] = False,
    owner: Annotated[
        str | None, typer.Option(metavar="HEX", help="Take over the states of this owner, from an earlier list.")
    ] = None,
    file: KeyFile = None,
) -> None:
    """Make a key for NAME and print it: this once, for the file has only its hash."""
    from ostinato.server.security.api_keys import KeyLimits, new_owner

    limits = KeyLimits(
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        concurrency=concurrency,
        state_bytes=state_bytes,
    )
    path = _path(file)
    key = _add(path, name, owner or new_owner(), limits, metrics, expires)
    typer.echo(key)
    typer.echo(f"The key of {name}, shown only now; {path} has its hash. ostinato serve --api-keys {path}", err=True)


@keys.command()
def rotate(
    name: Name,
    keep: Annotated[
        float | None,
        typer.Option("--keep", parser=parse_duration, metavar="TIME", help="The old keys work on for 1h or 7d."),
    ] = None,
    expires: Expires = None,
    file: KeyFile = None,
) -> None:
    """Make a new key for NAME, with the same limits and the same states. The old ones end now, or with --keep later."""
    from ostinato.server.security.api_keys import new_key, secret_of
    from ostinato.server.security.key_file import changing

    now, key, path = time.time(), new_key(), _path(file)
    with changing(path) as found:
        place = _place(found, name)
        old = [_ending(secret, now, keep) for secret in found[place].secrets if keep and not secret.is_expired(now)]
        secrets = (*old, secret_of(key, _in(expires)))
        found[place] = found[place].model_copy(update={"secrets": secrets})
    typer.echo(key)
    ends = f"end within {keep:g} seconds" if keep else "have ended"
    typer.echo(f"The new key of {name}, shown only now. The old ones {ends}.", err=True)


@keys.command()
def revoke(name: Name, file: KeyFile = None) -> None:
    """End all keys of NAME at once, also on servers that run. Its states stay, and nobody can reach them."""
    from ostinato.server.security.key_file import changing

    with changing(_path(file)) as found:
        gone = found.pop(_place(found, name))
    typer.echo(
        f"The keys of {name} have ended. `ostinato keys create NAME --owner {gone.owner}` would give its states to a "
        "new key; without one they go as they expire, or when there is need for room.",
        err=True,
    )


@keys.command("list")
def list_keys(file: KeyFile = None) -> None:
    """Show names, owners, limits, and of each key when it was made, when it ends, and how its hash begins."""
    from ostinato.server.security.key_file import read_keys

    for key in read_keys(_path(file)).keys:
        typer.echo(f"{key.name}  owner {key.owner}  {_limits(key)}")
        for secret in key.secrets:
            typer.echo(f"  {secret.fingerprint}  made {_date(secret.created)}  {_end(secret)}")


def _path(file: str | None) -> Path:
    return Path(file or default_key_file()).expanduser()


def _add(path: Path, name: str, owner: str, limits: KeyLimits, metrics: bool, expires: float | None) -> str:
    """Returns the key. Raises RequestError: the name is there already, or the name or owner is not one."""
    from pydantic import ValidationError

    from ostinato.server.security.api_keys import ApiKey, new_key, secret_of
    from ostinato.server.security.key_file import changing

    key = new_key()
    try:
        made = ApiKey(name=name, owner=owner, secrets=(secret_of(key, _in(expires)),), limits=limits, metrics=metrics)
    except ValidationError as error:
        first = error.errors()[0]
        raise RequestError(f"{first['loc'][0]}: {first['msg']}") from None
    with changing(path) as found:
        if any(other.name == name for other in found):
            raise RequestError(f"{name} has a key already: `ostinato keys rotate {name}` makes a new one")
        found.append(made)
    return key


def _place(found: list[ApiKey], name: str) -> int:
    """Raises RequestError: there is no such name."""
    for place, key in enumerate(found):
        if key.name == name:
            return place
    raise RequestError(f"there is no key of {name}; `ostinato keys list` shows all")


def _ending(secret: Secret, now: float, keep: float) -> Secret:
    """The secret, which ends after `keep` seconds, or when it would have anyway."""
    end = now + keep
    return secret.model_copy(update={"expires": end if secret.expires is None else min(end, secret.expires)})


def _in(seconds: float | None) -> float | None:
    return None if seconds is None else time.time() + seconds


def _limits(key: ApiKey) -> str:
    set_ones = [f"{name}={value}" for name, value in key.limits if value is not None]
    return "  ".join([*set_ones, *(["metrics"] if key.metrics else [])]) or "no limits"


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _end(secret: Secret) -> str:
    if secret.expires is None:
        return "never ends"
    return f"{'ended' if secret.is_expired(time.time()) else 'ends'} {_date(secret.expires)}"
