"""The sizes of an RWKV-7 model, and how flash-linear-attention's config.json gives them."""

import math
from dataclasses import dataclass

from ostinato.models.checkpoint import Checkpoint
from ostinato.models.config import ConfigReader


@dataclass(frozen=True, slots=True)
class RWKV7Config:
    """Sizes in elements. The low-rank sizes are read from the tensors: published configs are wrong about them."""

    layers: int
    hidden: int
    head: int
    ffn: int
    vocab_size: int
    norm_eps: float
    head_norm_eps: float
    tied: bool

    @property
    def heads(self) -> int:
        """Heads of a layer."""
        return self.hidden // self.head


def read_config(checkpoint: Checkpoint) -> RWKV7Config:
    """fla's RWKV7Config. Options that change the mathematics and are not implemented are refused by name.

    Raises:
        CheckpointError: a value is missing, of another type or out of range.
        UnsupportedModelError: such an option is set.
    """
    config = ConfigReader(checkpoint.config, checkpoint.folder / "config.json")
    hidden, layers = config.integer("hidden_size", 2048), config.parts("num_hidden_layers", 24)
    for key, *served in (
        ("hidden_act", "sqrelu"),
        ("attn", None),
        ("norm_bias", True),
        ("norm_first", True),
    ):
        config.only(key, *served)
    config.only("value_dim", hidden, *_uniform(checkpoint.config.get("value_dim"), hidden, layers))
    head = _head_size(checkpoint, config, hidden)
    norm_eps = config.positive("norm_eps", 1e-5)
    return RWKV7Config(
        layers=layers,
        hidden=hidden,
        head=head,
        ffn=_ffn_size(config, hidden),
        vocab_size=config.integer("vocab_size", 32000),
        norm_eps=norm_eps,
        head_norm_eps=norm_eps * head,
        tied=config.flag("tie_word_embeddings", False),
    )


def _uniform(widths: object, hidden: int, layers: int) -> list[list[int]]:
    """The list of one width per layer that is served; none unless there is a list, which bounds its length."""
    return [[hidden] * layers] if isinstance(widths, list) and len(widths) == layers else []


def _head_size(checkpoint: Checkpoint, config: ConfigReader, hidden: int) -> int:
    """An explicit null, unlike an absent key, leaves the size of a head to their number, as in fla."""
    if checkpoint.config.get("head_dim", 64) is None and config.has("num_heads"):
        return config.divide("num_heads", hidden, config.integer("num_heads"))
    head = config.integer("head_dim", 64)
    config.only("num_heads", config.divide("head_dim", hidden, head))
    return head


def _ffn_size(config: ConfigReader, hidden: int) -> int:
    """Where it is not given: `hidden_ratio` times the hidden size, up to a multiple of 32."""
    if config.has("intermediate_size"):
        return config.integer("intermediate_size")
    return 32 * math.ceil(config.fraction_of(hidden, "hidden_ratio", 4) / 32)
