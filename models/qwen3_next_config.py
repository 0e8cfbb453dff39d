"""What a config.json of transformers' Qwen3NextForCausalLM says."""

from dataclasses import dataclass

import torch

from ostinato.models.base import StateSpec, StateTensor
from ostinato.models.checkpoint import Checkpoint
from ostinato.models.config import ConfigReader
from ostinato.models.errors import CheckpointError
from ostinato.models.fla import Shell
from ostinato.models.gated_deltanet import GatedDeltaNetConfig
from ostinato.models.mamba2_hybrid import SINKS, hold_window
from ostinato.models.window import WindowSizes, read_rotary

KINDS = ("linear_attention", "full_attention")


@dataclass(frozen=True, slots=True)
class ExpertsConfig:
    """layers: those that have experts in place of one MLP; inner, shared: widths of an expert and of the shared one.

    chosen: of the `count` experts, for every token; normalize: whether their weights sum up to one.
    """

    layers: frozenset[int]
    count: int
    chosen: int
    inner: int
    shared: int
    normalize: bool


@dataclass(frozen=True, slots=True)
class Qwen3NextConfig:
    """mixer: of the recurrent layers; its shell is that of the whole model. attending, recurrent: layers, in order."""

    mixer: GatedDeltaNetConfig
    attention: WindowSizes
    experts: ExpertsConfig
    attending: tuple[int, ...]
    recurrent: tuple[int, ...]
    rotary_width: int
    rope_base: float

    def state(self, dtype: torch.dtype) -> StateSpec:
        """`recurrent` [value heads, value, key] fp32 and the `conv` tail, and rings where there is attention.

        dtype: of the computation.
        """
        c, layers = self.mixer, len(self.recurrent)
        tensors = self.attention.state(len(self.attending), dtype)
        if layers:
            tensors += (
                StateTensor("recurrent", layers, (c.value_heads, c.value, c.key), torch.float32),
                StateTensor("conv", layers, (c.conv_width - 1, sum(c.joined)), dtype),
            )
        return StateSpec(tensors)


def read_config(checkpoint: Checkpoint) -> Qwen3NextConfig:
    """transformers' Qwen3NextConfig. Raises CheckpointError, UnsupportedModelError: as ConfigReader and hold_window."""
    config = ConfigReader(checkpoint.config, checkpoint.folder / "config.json")
    config.only("hidden_act", "silu", "swish")
    config.only("attention_bias", False)
    shell = _read_shell(config)
    attention = _read_attention(config, hold_window(checkpoint))
    rotary_width, rope_base = read_rotary(config, attention.head, base=10000.0, part=0.25)
    kinds = _read_kinds(config, checkpoint, shell.layers)
    return Qwen3NextConfig(
        mixer=_read_mixer(config, shell),
        attention=attention,
        experts=_read_experts(config, shell.layers),
        attending=tuple(i for i, kind in enumerate(kinds) if kind == "full_attention"),
        recurrent=tuple(i for i, kind in enumerate(kinds) if kind == "linear_attention"),
        rotary_width=rotary_width,
        rope_base=rope_base,
    )


def _read_shell(config: ConfigReader) -> Shell:
    return Shell(
        layers=config.parts("num_hidden_layers", 48),
        hidden=config.integer("hidden_size", 2048),
        mlp=config.integer("intermediate_size", 5632),
        vocab_size=config.integer("vocab_size", 151936),
        norm_eps=config.positive("rms_norm_eps", 1e-6),
        tied=config.flag("tie_word_embeddings", False),
        window=None,
    )


def _read_kinds(config: ConfigReader, checkpoint: Checkpoint, layers: int) -> tuple[str, ...]:
    every = config.integer("full_attention_interval", 4)
    periodic = [KINDS[(i + 1) % every == 0] for i in range(layers)]
    kinds = config.words("layer_types", periodic, KINDS)
    if len(kinds) != layers:
        file = checkpoint.folder / "config.json"
        raise CheckpointError(f"{file}: layer_types names {len(kinds)} layers, and there are {layers}")
    return kinds


def _read_mixer(config: ConfigReader, shell: Shell) -> GatedDeltaNetConfig:
    heads, value_heads = config.integer("linear_num_key_heads", 16), config.integer("linear_num_value_heads", 32)
    config.divide("linear_num_key_heads", value_heads, heads)
    return GatedDeltaNetConfig(
        shell=shell,
        heads=heads,
        value_heads=value_heads,
        key=config.integer("linear_key_head_dim", 128),
        value=config.integer("linear_value_head_dim", 128),
        conv_width=config.integer("linear_conv_kernel_dim", 4),
        largest_beta=1,
        output_gate=True,
        sigmoid_gate=False,
    )


def _read_attention(config: ConfigReader, window: int) -> WindowSizes:
    heads, kv_heads = config.integer("num_attention_heads", 16), config.integer("num_key_value_heads", 2)
    config.divide("num_key_value_heads", heads, kv_heads)
    return WindowSizes(heads, kv_heads, config.integer("head_dim", 256), window, SINKS)


def _read_experts(config: ConfigReader, layers: int) -> ExpertsConfig:
    dense = config.indices("mlp_only_layers", layers) if config.has("mlp_only_layers") else ()
    every = config.integer("decoder_sparse_step", 1)
    count, chosen = config.parts("num_experts", 512), config.integer("num_experts_per_tok", 10)
    config.at_most("num_experts_per_tok", chosen, count)
    return ExpertsConfig(
        layers=frozenset(i for i in range(layers) if i not in dense and (i + 1) % every == 0),
        count=count,
        chosen=chosen,
        inner=config.integer("moe_intermediate_size", 512),
        shared=config.integer("shared_expert_intermediate_size", 512),
        normalize=config.flag("norm_topk_prob", True),
    )
