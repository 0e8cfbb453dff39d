"""The oracle's side of the exchange: one job a line on stdin, one reply a line on stdout.

Job: `{"checkpoint": path, "sequences": [[id, ...], ...], "out": path}`. Reply: `{"ok": true}` after `out` was written
(safetensors: tensor `i` holds the fp32 logits [T, vocabulary] of sequence i, every position, empty initial state), or
`{"error": traceback}`.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import torch
from safetensors.torch import save_file

Forward = Callable[[list[int]], torch.Tensor]


def serve(load: Callable[[Path], Forward]) -> None:
    """Answer jobs until stdin closes. `load` makes a checkpoint into a function from ids to logits [T, vocabulary]."""
    replies = _take_over_stdout()
    for line in sys.stdin:
        replies.write(json.dumps(_answer(load, json.loads(line))) + "\n")
        replies.flush()


def _take_over_stdout() -> TextIO:
    """Libraries print their banners with `print`: from here on those go to stderr, and replies have stdout alone."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return replies


def _answer(load: Callable[[Path], Forward], job: dict[str, object]) -> dict[str, object]:
    try:
        with torch.no_grad():
            forward = load(Path(str(job["checkpoint"])))
            sequences = job["sequences"]
            assert isinstance(sequences, list)
            logits = {str(i): forward(ids).float().contiguous() for i, ids in enumerate(sequences)}
        save_file(logits, str(job["out"]))
    except Exception:
        return {"error": traceback.format_exc()}
    return {"ok": True}
