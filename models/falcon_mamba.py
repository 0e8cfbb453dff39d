"""Falcon-Mamba (Zuo et al. 2024), in the transformers layout: Mamba with norms on the low-rank step size, B and C."""

from dataclasses import replace

import torch

from ostinato.models.checkpoint import Checkpoint
from ostinato.models.config import ConfigReader
from ostinato.models.mamba import Mamba, MambaConfig, read_hf_config


class FalconMamba(Mamba):
    """See `ostinato.models.base.Model`. The state is Mamba's."""

    family = "Falcon-Mamba"


def read_config(checkpoint: Checkpoint) -> MambaConfig:
    """transformers' FalconMambaConfig. Its `expand` is wrong in the published files; `intermediate_size` is not.

    Raises CheckpointError, UnsupportedModelError: as ConfigReader.
    """
    config = ConfigReader(checkpoint.config, checkpoint.folder / "config.json")
    return replace(read_hf_config(checkpoint), inner_norm_eps=config.positive("mixer_rms_eps", 1e-6))


def load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> FalconMamba:
    """The layout of transformers' FalconMambaForCausalLM."""
    return FalconMamba(checkpoint, read_config(checkpoint), device, dtype)
