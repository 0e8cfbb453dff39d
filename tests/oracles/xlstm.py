"""xLSTM by transformers' `xLSTMForCausalLM`, its plain torch path, fp32.

The published configuration names Triton kernels, and its sizes by keys that transformers ignores.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch
from transformers.models.xlstm import xLSTMConfig, xLSTMForCausalLM
from transformers.models.xlstm.modeling_xlstm import xLSTMPreTrainedModel

from tests.oracles.worker import Forward, serve

PLAIN = {
    "chunkwise_kernel": "chunkwise--native_autograd",
    "sequence_kernel": "native_sequence__native",
    "step_kernel": "native",
    "autocast_kernel_dtype": "float32",
    "inference_state_dtype": "float32",
}

# Draws weights, all of which the checkpoint replaces, and fails where projections are fused.
xLSTMPreTrainedModel._init_weights = lambda self, module: None


def load(folder: Path) -> Forward:
    published = json.loads((folder / "config.json").read_text())
    config = {
        **published,
        **PLAIN,
        "hidden_size": published.get("hidden_size", published.get("embedding_dim")),
        "num_hidden_layers": published.get("num_hidden_layers", published.get("num_blocks")),
    }
    with tempfile.TemporaryDirectory() as changed:
        for file in folder.iterdir():
            (Path(changed) / file.name).symlink_to(file.resolve())
        (Path(changed) / "config.json").unlink()
        xLSTMConfig.from_dict(config).save_pretrained(changed)
        model, info = xLSTMForCausalLM.from_pretrained(changed, dtype=torch.float32, output_loading_info=True)
    problems = {name: found for name, found in info.items() if found}
    assert not problems, f"transformers did not load all of it: {problems}"
    model.eval()
    return lambda ids: model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


if __name__ == "__main__":
    serve(load)
