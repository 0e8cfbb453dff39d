"""Falcon-Mamba (Zuo et al. 2024), in the transformers layout: Mamba with norms on the low-rank step size, B and C."""

from dataclasses import replace

import torch

from ostinato.models.checkpoint import Checkpoint
from ostinato.models.config import ConfigReader
from ostinato.models.mamba import MambaConfig, read_hf_config, read_mixer
from ostinato.models.mamba_backbone import MambaBackbone


def read_config(checkpoint: Checkpoint) -> MambaConfig:
    """transformers' FalconMambaConfig. Its `expand` is wrong in the published files; `intermediate_size` is not.

    Raises CheckpointError, UnsupportedModelError: as ConfigReader.
    """
    config = ConfigReader(checkpoint.config, checkpoint.folder / "config.json")
    return replace(read_hf_config(checkpoint), inner_norm_eps=config.positive("mixer_rms_eps", 1e-6))


def load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> MambaBackbone:
    """The layout of transformers' FalconMambaForCausalLM."""
    return MambaBackbone("Falcon-Mamba", checkpoint, read_config(checkpoint), read_mixer, device, dtype)
