"""The `ostinato` command. What a command runs on is imported when it runs: `--help` does not wait for torch."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ostinato.engine.errors import OstinatoError, RequestError
from ostinato.server.cli.bench import bench
from ostinato.server.cli.chat import chat
from ostinato.server.cli.doctor import doctor
from ostinato.server.cli.evaluate import evaluate
from ostinato.server.cli.generate import generate
from ostinato.server.cli.keys import keys
from ostinato.server.cli.models import models
from ostinato.server.cli.serve import serve
from ostinato.server.cli.states import states

FAILED, MISUSED = 1, 2


class OneLineErrors(TyperGroup):
    """Errors of our own tree are one line on stderr; only a bug shows a traceback."""

    def invoke(self, ctx: Any) -> object:  # typer's own context class, which it does not export
        try:
            return super().invoke(ctx)
        except OstinatoError as error:
            from ostinato.server.cli.console import show_error

            show_error(error)
            raise typer.Exit(MISUSED if isinstance(error, RequestError) else FAILED) from None


app = typer.Typer(
    name="ostinato",
    cls=OneLineErrors,
    help="Serve language models whose memory of the whole past is one fixed-size state.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(serve)
app.command()(generate)
app.command()(chat)
app.add_typer(bench, name="bench")
app.add_typer(evaluate, name="eval")
app.command()(models)
app.add_typer(states, name="states")
app.add_typer(keys, name="keys")
app.command()(doctor)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ostinato {version('ostinato')}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Takes the options that belong to no command; `--version` has ended the program by now."""


def main() -> None:
    app()


if __name__ == "__main__":
    main()
