"""What a treated reading leaves in the state, for another process on another back end to compare with.

`OSTINATO_KERNELS=triton TRITON_INTERPRET=1 python -m tests.models.treated_run FILE NAME...` writes a safetensors
file with the names NAME/TENSOR, by architecture.
"""

from __future__ import annotations

import sys

import torch
from safetensors.torch import save_file
from torch import Tensor

from ostinato.engine.state_pool import StatePool
from ostinato.kernels import dispatch
from ostinato.kernels.packed import Packed
from ostinato.kernels.treatment import Treatment
from ostinato.models.mitigations import remedies
from ostinato.models.recurrent_memory import window_spec
from ostinato.models.registry import load_model
from tests.interpreter import look_once
from tests.models.test_contract import open_small, random_tokens

SLOT = 1


def treated_states(architecture: str) -> dict[str, Tensor]:
    """A scan of 19 tokens and a step, treated with all that applies; then a window is cut."""
    with torch.inference_mode():
        model = load_model(open_small(architecture), dtype=torch.float32)
        applies = remedies(model.family)
        window = window_spec(model.family, model.state_spec) if "window" in applies else None
        pool = StatePool(model.state_spec, 2, window=window)
        forget, remember = (0.9 if "forget" in applies else 1.0), (0.8 if "remember" in applies else 1.0)
        treatment = Treatment(forget, remember, pool.sums_of_decays())
        tokens = random_tokens(model, 20, seed=1)
        for piece in (tokens[:19], tokens[19:]):
            batch = Packed.of([SLOT], [len(piece)], treatment=treatment)
            with dispatch.running(torch.device("cpu"), batch_invariant=False):
                model.forward(torch.tensor(piece), batch, pool.tensors)
        return {name: tensor[:, SLOT].clone() for name, tensor in (pool.tensors | pool.window_tensors).items()}


if __name__ == "__main__":
    look_once()
    states = {name: treated_states(name) for name in sys.argv[2:]}
    save_file({f"{name}/{key}": tensor for name, found in states.items() for key, tensor in found.items()}, sys.argv[1])
