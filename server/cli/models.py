"""`ostinato models`: what a model takes, before it is loaded."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from ostinato.server.cli.options import MODEL_HELP, DType, model_path

if TYPE_CHECKING:
    import torch

    from ostinato.models.base import StateTensor
    from ostinato.models.outline import Outline

REFUSED = 1
GIB = 1024**3
DTYPES = ("auto", "float32", "bfloat16", "float16")


def models(
    path: Annotated[str, typer.Argument(help=MODEL_HELP)],
    dtype: DType = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show a model's family and parameters, the bytes of its weights and of one state, and how many states a GiB holds.

    Weights are not read, and of a hub id they are not downloaded. The exit code is 1 if the model is not served; why
    not is an error message, or in the JSON object the field `reason`.
    """
    from ostinato.engine.errors import CheckpointError
    from ostinato.models.outline import read_outline

    try:
        outline = read_outline(model_path(path), _dtype(dtype))
    except CheckpointError as error:
        if not as_json:
            raise
        typer.echo(json.dumps({"model": path, "served": False, "reason": str(error)}, indent=2))
        raise typer.Exit(REFUSED) from None
    if as_json:
        typer.echo(json.dumps({"model": path, "served": True, **_as_object(outline)}, indent=2))
    else:
        _show(path, outline)


def _dtype(name: str) -> torch.dtype | None:
    import torch

    if name not in DTYPES:
        raise typer.BadParameter(f"must be one of {', '.join(DTYPES)}, got {name!r}", param_hint="--dtype")
    return None if name == "auto" else getattr(torch, name)


def _as_object(outline: Outline) -> dict[str, object]:
    return {
        "family": outline.family,
        "architecture": outline.architecture,
        "parameters": outline.parameters,
        "dtype": _name(outline.dtype),
        "weight_bytes": outline.weight_bytes,
        "bytes_per_state": outline.state_spec.bytes_per_state,
        "slots_per_gib": GIB // outline.state_spec.bytes_per_state,
        "window": outline.window,
        "encoder_length": outline.state_spec.encoder_length,
        "state": [
            {
                "name": tensor.name,
                "layers": tensor.layers,
                "shape": list(tensor.shape),
                "dtype": _name(tensor.dtype),
                "bytes": tensor.num_bytes,
            }
            for tensor in outline.state_spec.tensors
        ],
    }


def _show(path: str, outline: Outline) -> None:
    from rich.console import Console
    from rich.table import Table

    from ostinato.models.architecture import describe_architecture
    from ostinato.server.units import format_bytes

    each = outline.state_spec.bytes_per_state
    table = Table(title=path, title_justify="left", show_header=False)
    table.add_row("family", f"{outline.family} ({describe_architecture(outline.architecture)})")
    table.add_row("parameters", f"{outline.parameters:,}")
    table.add_row("weights", f"{format_bytes(outline.weight_bytes)} in {_name(outline.dtype)}")
    table.add_row("one state", f"{format_bytes(each)} ({each:,} bytes), however long the text")
    for tensor in outline.state_spec.tensors:
        table.add_row(f"  {tensor.name}", f"{format_bytes(tensor.num_bytes)}: {_form(tensor)}")
    table.add_row("states per GiB", f"{GIB // each:,}")
    if outline.window is not None:
        table.add_row("window", f"attention layers see {outline.window:,} tokens; the other layers see all")
    if (region := outline.state_spec.encoder_length) > 0:
        table.add_row("encoder region", f"the first {region:,} tokens of a prompt are read at once")
    Console(highlight=False, markup=False).print(table)


def _form(tensor: StateTensor) -> str:
    shape = " x ".join(str(size) for size in tensor.shape) or "one number"
    layers = f"{tensor.layers} layer{'s' if tensor.layers > 1 else ''}"
    return f"{layers} of {shape}, {_name(tensor.dtype)}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
