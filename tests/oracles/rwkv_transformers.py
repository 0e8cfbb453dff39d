"""RWKV-4 by transformers' `RwkvForCausalLM`, its plain torch path, fp32."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers.models.rwkv import RwkvForCausalLM

from tests.oracles.worker import Forward, serve


def load(folder: Path) -> Forward:
    model, info = RwkvForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    problems = {name: found for name, found in info.items() if found}
    assert not problems, f"transformers did not load all of it: {problems}"
    model.eval()
    return lambda ids: model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


if __name__ == "__main__":
    serve(load)
