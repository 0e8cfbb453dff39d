"""Mamba-2's options, from a config of transformers, of flash-linear-attention or of the original state-spaces code."""

import math
from dataclasses import dataclass

import torch

from ostinato.models.base import StateSpec, StateTensor
from ostinato.models.checkpoint import Checkpoint
from ostinato.models.config import ConfigReader
from ostinato.models.errors import CheckpointError

# The original block has these options, and fla's, which was made after it. transformers' does not.
_BLOCK_OPTIONS = (("rmsnorm", True), ("norm_before_gate", False), ("D_has_hdim", False))


@dataclass(frozen=True, slots=True)
class Mamba2Config:
    """Sizes in elements. A group: consecutive heads that share B and C, and are normalised together."""

    layers: int
    hidden: int
    heads: int
    head: int
    groups: int
    state_size: int
    conv_width: int
    vocab_size: int
    vocab_rows: int
    norm_eps: float
    step_limits: tuple[float, float]
    projection_bias: bool
    conv_bias: bool
    tied: bool
    embedding_name: str

    @property
    def inner(self) -> int:
        """Width of x and z: all heads together."""
        return self.heads * self.head

    @property
    def channels(self) -> int:
        """Width of what the convolution reads: x, B and C."""
        return self.inner + 2 * self.groups * self.state_size

    def state(self, dtype: torch.dtype) -> StateSpec:
        """`ssm` [heads, head, state size] fp32 and the `conv` tail. dtype: of the computation."""
        return StateSpec(
            (
                StateTensor("ssm", self.layers, (self.heads, self.head, self.state_size), torch.float32),
                StateTensor("conv", self.layers, (self.conv_width - 1, self.channels), dtype),
            )
        )


def read_hf_config(checkpoint: Checkpoint) -> Mamba2Config:
    """transformers' Mamba2Config, or flash-linear-attention's of the same name, which is known by its `norm_eps`.

    transformers' `norm_before_gate`, true in published configs, is read by nobody: the gate always comes first.
    Raises CheckpointError, UnsupportedModelError: as ConfigReader; num_heads and head_dim contradict `expand`.
    """
    file = checkpoint.folder / "config.json"
    config = ConfigReader(checkpoint.config, file)
    config.only("hidden_act", "silu", "swish")
    fla = config.has("norm_eps")
    for key, served in _BLOCK_OPTIONS if fla else (("rms_norm", True),):
        config.only(key, served)
    hidden = config.integer("hidden_size", 4096)
    heads, head, groups = (
        config.integer("num_heads", 128),
        config.integer("head_dim", 64),
        config.integer("n_groups", 8),
    )
    inner = config.fraction_of(hidden, "expand", 2)
    if heads * head != inner:
        raise CheckpointError(
            f"{file}: num_heads times head_dim is {heads * head}, but expand makes {inner} of {hidden}"
        )
    config.divide("n_groups", heads, groups)
    vocab_size = config.integer("vocab_size", 32768)
    return Mamba2Config(
        layers=config.parts("num_hidden_layers", 64),
        hidden=hidden,
        heads=heads,
        head=head,
        groups=groups,
        state_size=config.integer("state_size", 128),
        conv_width=config.integer("conv_kernel", 4),
        vocab_size=vocab_size,
        vocab_rows=vocab_size,
        norm_eps=config.positive("norm_eps" if fla else "layer_norm_epsilon", 1e-5),
        step_limits=config.interval("dt_limit" if fla else "time_step_limit", 0.0, math.inf),
        projection_bias=config.flag("use_bias", False),
        conv_bias=config.flag("use_conv_bias", True),
        tied=config.flag("tie_word_embeddings", False),
        embedding_name="backbone.embeddings.weight",
    )


def read_original_config(checkpoint: Checkpoint) -> Mamba2Config:
    """mamba_ssm's MambaConfig, with `ssm_cfg` for its Mamba2 module: the vocabulary is padded to a multiple.

    A tied output matrix is on disk all the same in the published files; where it is not, the embedding is it.
    Raises CheckpointError, UnsupportedModelError: as ConfigReader.
    """
    config = ConfigReader(checkpoint.config, checkpoint.folder / "config.json")
    config.only("rms_norm", True)
    config.only("d_intermediate", 0)
    ssm = config.section("ssm_cfg")
    hidden = config.integer("d_model")
    inner, head, groups = ssm.fraction_of(hidden, "expand", 2), ssm.integer("headdim", 64), ssm.integer("ngroups", 1)
    for key, served in (*_BLOCK_OPTIONS, ("d_ssm", inner)):
        ssm.only(key, served)
    heads = ssm.divide("headdim", inner, head)
    ssm.divide("ngroups", heads, groups)
    multiple, vocab_size = config.integer("pad_vocab_size_multiple", 8), config.integer("vocab_size")
    return Mamba2Config(
        layers=config.parts("n_layer"),
        hidden=hidden,
        heads=heads,
        head=head,
        groups=groups,
        state_size=ssm.integer("d_state", 128),
        conv_width=ssm.integer("d_conv", 4),
        vocab_size=vocab_size,
        vocab_rows=math.ceil(vocab_size / multiple) * multiple,
        norm_eps=1e-5,
        step_limits=ssm.interval("dt_limit", 0.0, math.inf),
        projection_bias=ssm.flag("bias", False),
        conv_bias=ssm.flag("conv_bias", True),
        tied=config.flag("tie_embeddings", True),
        embedding_name="backbone.embedding.weight",
    )
