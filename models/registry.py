"""Which architectures are served, and by which module. A new one is one row here and one file beside it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from ostinato.kernels.dispatch import supported_dtypes
from ostinato.models.errors import UnsupportedModelError

if TYPE_CHECKING:
    from ostinato.models.base import Model
    from ostinato.models.checkpoint import Checkpoint

# Architecture (HF's name, or the layout's where a format has none) -> "module:function", imported when first needed.
ARCHITECTURES = {
    "BambaForCausalLM": "bamba:load",
    "DeltaNetForCausalLM": "delta_net:load",
    "FalconH1ForCausalLM": "falcon_h1:load",
    "FalconMambaForCausalLM": "falcon_mamba:load",
    "GLAForCausalLM": "gla:load",
    "GatedDeltaNetForCausalLM": "gated_deltanet:load",
    "GraniteMoeHybridForCausalLM": "granite4:load",
    "HGRN2ForCausalLM": "hgrn2:load",
    "HGRNForCausalLM": "hgrn:load",
    "KDAForCausalLM": "kda:load",
    "Mamba2ForCausalLM": "mamba2:load_hf",
    "MambaForCausalLM": "mamba:load_hf",
    "Qwen3NextForCausalLM": "qwen3_next:load",
    "RWKV6ForCausalLM": "rwkv6_fla:load",
    "RWKV7ForCausalLM": "rwkv7:load",
    "RecurrentGemmaForCausalLM": "recurrent_gemma:load",
    "RetNetForCausalLM": "retnet:load",
    "Rwkv5ForCausalLM": "rwkv5:load_hf",
    "Rwkv6ForCausalLM": "rwkv6:load_hf",
    "RwkvForCausalLM": "rwkv4:load_hf",
    "SambaForCausalLM": "samba:load",
    "based": "based:load",
    "jrt": "jrt:load",
    "mamba2_ssm": "mamba2:load_original",
    "mamba_ssm": "mamba:load_original",
    "rwkv4_pth": "rwkv4:load_original",
    "rwkv5.2_pth": "rwkv5:load_original",
    "rwkv6_pth": "rwkv6:load_original",
    "rwkv7_pth": "rwkv7_pth:load",
    "xLSTMForCausalLM": "xlstm:load",
}

Loader = Callable[["Checkpoint", torch.device, torch.dtype], "Model"]


def load_model(checkpoint: Checkpoint, device: str = "cpu", dtype: torch.dtype | None = None) -> Model:
    """Builds the model and consumes the checkpoint, which is closed afterwards.

    dtype: of the projections; None takes the checkpoint's own where the device computes in it, otherwise float32.

    Raises:
        CheckpointError: a tensor is missing, left over or misshapen.
        UnsupportedModelError: an option of the model is not implemented, or the device cannot compute in `dtype`.
    """
    place = torch.device(device)
    with checkpoint, torch.inference_mode():
        return _loader(checkpoint.architecture)(checkpoint, place, _choose_dtype(checkpoint, place, dtype))


def _loader(architecture: str) -> Loader:
    module, _, function = ARCHITECTURES[architecture].partition(":")
    loader: Loader = getattr(importlib.import_module(f"ostinato.models.{module}"), function)
    return loader


def _choose_dtype(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype | None) -> torch.dtype:
    served = supported_dtypes(device)
    if dtype is None:
        return checkpoint.dtype if checkpoint.dtype in served else torch.float32
    if dtype not in served:
        names = ", ".join(str(each).removeprefix("torch.") for each in served)
        raise UnsupportedModelError(f"{dtype} is not computed on {device.type} here; choose one of {names}")
    return dtype
