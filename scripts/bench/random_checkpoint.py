"""Writes a checkpoint with random weights in the shape of a published model: for timing, and nothing else.

    python scripts/bench/random_checkpoint.py rwkv7-0.4b /tmp/rwkv7
    ostinato bench offline /tmp/rwkv7

bf16, in the public layout, without a tokenizer; the same name and seed give the same bytes. The weights are drawn as
the tests draw theirs (tests/models/weights.py), so that nothing overflows and no gate is stuck.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]

Draw = Callable[[dict[str, Any], int], dict[str, torch.Tensor]]


def published() -> dict[str, tuple[dict[str, Any], Draw]]:
    """By name: the config, and what draws the weights for it."""
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))  # where the tests are a package
    from tests.models import public_configs as configs
    from tests.models import weights
    from tests.models.checkpoints import fla_rwkv7_names
    from tests.models.fla_weights import fla_tensors
    from tests.models.random_fla import resolved_fla

    return {
        "mamba-130m": (configs.MAMBA_130M, weights.mamba_tensors),
        "mamba2-370m": (configs.MAMBA2_370M, weights.mamba2_tensors),
        "rwkv7-0.4b": (configs.RWKV7_04B, lambda config, seed: fla_rwkv7_names(weights.rwkv7_tensors(config, seed))),
        "gla-340m": (configs.GLA_340M, lambda config, seed: fla_tensors(resolved_fla(config), seed)),
    }


def write(name: str, folder: Path, seed: int = 0) -> Path:
    """Returns the folder. Raises KeyError: no such name."""
    config, draw = published()[name]
    from tests.models.checkpoints import write_folder

    return write_folder(folder, config, draw(config, seed), "bfloat16", "safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(published()))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(write(arguments.name, arguments.folder, arguments.seed))


if __name__ == "__main__":
    main()
