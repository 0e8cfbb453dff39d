"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ostinato.server.units import parse_bytes

DEMO = "demo"
DEFAULT_DEMO = "rwkv7"


def parse_size(text: str) -> int:
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


MODEL_HELP = (
    "Folder, .pth file or hub id; or demo, demo:gla, demo:mamba, demo:rwkv7: the small models that come with Ostinato."
)
Model = Annotated[str, typer.Argument(help=MODEL_HELP)]
Device = Annotated[str, typer.Option(help="Where to run, for example cpu.")]
DType = Annotated[str, typer.Option(help="Of the weights: auto (as stored), float32, bfloat16 or float16.")]
TokenizerPath = Annotated[
    str | None, typer.Option("--tokenizer", help="Folder, file or hub id, for a checkpoint without a tokenizer.")
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: PyTorch's choice.")]
BatchInvariant = Annotated[
    bool,
    typer.Option("--batch-invariant", help="On a GPU: the same bits whoever shares the batch. Slower. CPU: always so."),
]
CUDAGraphs = Annotated[
    bool, typer.Option("--cuda-graphs/--no-cuda-graphs", help="On a GPU: replay decode steps as CUDA graphs.")
]

MaxTokens = Annotated[int, typer.Option(min=0, help="Tokens to generate at most.")]
Temperature = Annotated[float, typer.Option(help="0 takes the most likely token each time.")]
TopP = Annotated[float, typer.Option(help="Draw from the most likely tokens that have this share together.")]
TopK = Annotated[int, typer.Option(help="Draw from so many most likely tokens; 0: all.")]
MinP = Annotated[float, typer.Option(help="Drop tokens less likely than this share of the best one's probability.")]
RepetitionPenalty = Annotated[float, typer.Option(help="Over 1 discourages tokens of the prompt and the answer.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same text.")]


def model_path(name: str) -> str:
    """The path of an embedded demo model; anything else as it is. Raises CheckpointError: no such demo model."""
    kind, _, variant = name.partition(":")
    if kind != DEMO:
        return name
    from ostinato.models import demo  # beside the models: imports torch

    return str(demo.path(variant or DEFAULT_DEMO))


def api_name(model: str) -> str:
    """What the API calls a model by default: its file's or folder's name, or the hub id as given."""
    path = Path(model).expanduser()
    if not path.exists():
        return model
    return path.resolve().stem if path.is_file() else path.resolve().name
