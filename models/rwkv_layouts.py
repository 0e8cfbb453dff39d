"""How checkpoints of RWKV-4, 5 and 6 name and size their tensors.

The original layout, one `.pth` file without a config, is the one that the models read; the layout of transformers
names the same tensors otherwise.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ostinato.models.checkpoint import Checkpoint
from ostinato.models.config import ConfigReader
from ostinato.models.errors import CheckpointError

_BLOCK = re.compile(r"blocks\.(\d{1,9})\.")


@dataclass(frozen=True, slots=True)
class RWKVConfig:
    """Sizes in elements. `keys`, `values`: channels of time mixing, as a rule as many as `hidden`. `heads`: of time
    mixing, 0 in RWKV-4, which has none; `head_norm_eps` is of the norm over them, `last_norm_eps` of the last one."""

    layers: int
    hidden: int
    keys: int
    values: int
    ffn: int
    vocab_size: int
    heads: int = 0
    norm_eps: float = 1e-5
    head_norm_eps: float = 64e-5
    last_norm_eps: float = 1e-5  # of transformers' layout too, whatever its config says of the other norms
    tied: bool = False


@dataclass(frozen=True, slots=True)
class Names:
    """Another layout's names for the original's. `parts`: of a block's tensors, by any leading components."""

    top: Mapping[str, str]
    blocks: str
    parts: Mapping[str, str]

    def of(self, original: str) -> str:
        """The name of the tensor that the original layout calls `original`."""
        block = _BLOCK.match(original)
        if block is None:
            stem, _, kind = original.rpartition(".")
            return f"{self.top[stem]}.{kind}"
        rest = original[block.end() :]
        stem = rest
        while stem and stem not in self.parts:
            stem = stem.rpartition(".")[0]
        return f"{self.blocks}.{block[1]}.{self.parts[stem]}{rest.removeprefix(stem)}"


_TIME_MIXES = {"k": "key", "v": "value", "r": "receptance", "g": "gate"}
TRANSFORMERS = Names(
    top={"emb": "rwkv.embeddings", "ln_out": "rwkv.ln_out", "head": "head"},
    blocks="rwkv.blocks",
    parts={
        "ln0": "pre_ln",
        "ln1": "ln1",
        "ln2": "ln2",
        "att": "attention",
        "ffn": "feed_forward",
        **{f"att.time_mix_{short}": f"attention.time_mix_{long}" for short, long in _TIME_MIXES.items()},
        **{f"ffn.time_mix_{short}": f"feed_forward.time_mix_{long}" for short, long in _TIME_MIXES.items()},
    },
)


class Renamed:
    """A checkpoint in another layout, seen under the original's names."""

    def __init__(self, checkpoint: Checkpoint, names: Names) -> None:
        self._checkpoint = checkpoint
        self._names = names

    def has(self, name: str) -> bool:
        """See `Checkpoint.has`."""
        return self._checkpoint.has(self._names.of(name))

    def shape(self, name: str, dims: int | None = None) -> tuple[int, ...]:
        """See `Checkpoint.shape`."""
        return self._checkpoint.shape(self._names.of(name), dims)

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """See `Checkpoint.take`."""
        return self._checkpoint.take(self._names.of(name), shape)


def read_shapes(source: Checkpoint | Renamed, layers: int, origin: Checkpoint, *, heads: bool) -> RWKVConfig:
    """The sizes that the tensors of `origin` have, as `source` names them. `heads`: whether the version has them.

    Raises CheckpointError: a tensor is missing, or heads do not make up the channels of time mixing.
    """
    vocab_size, hidden = source.shape("emb.weight", 2)
    attention = source.shape("blocks.0.att.key.weight", 2)[0]
    count = 0
    if heads:
        count, head = source.shape("blocks.0.att.time_faaaa", 2)
        if count * head != attention:
            raise CheckpointError(
                f"{origin.path}: block 0 has {count} heads of {head} ('time_faaaa'), "
                f"which do not make up {attention} channels"
            )
    return RWKVConfig(
        layers=layers,
        hidden=hidden,
        keys=attention,
        values=attention,
        ffn=source.shape("blocks.0.ffn.key.weight", 2)[0],
        vocab_size=vocab_size,
        heads=count,
    )


def read_original_config(checkpoint: Checkpoint, *, heads: bool) -> RWKVConfig:
    """Everything follows from the shapes. `heads`: whether the version has them. Raises CheckpointError."""
    blocks = [int(block[1]) for name in checkpoint.names if (block := _BLOCK.match(name))]
    return read_shapes(checkpoint, 1 + max(blocks), checkpoint, heads=heads)


def read_hf_config(checkpoint: Checkpoint, *, heads: bool) -> RWKVConfig:
    """The config of transformers' RwkvForCausalLM, and of Rwkv5ForCausalLM and Rwkv6ForCausalLM.

    A size that it leaves out is what the tensors have. `num_attention_heads` is not read: published configs give the
    size of a head there. `rescale_every`, a guard against the overflow of half precision, has no use here, where the
    residual stream is fp32.

    Raises CheckpointError: a value is of another type or out of range, or a tensor is missing.
    """
    config = ConfigReader(checkpoint.config, checkpoint.folder / "config.json")
    found = read_shapes(Renamed(checkpoint, TRANSFORMERS), config.parts("num_hidden_layers"), checkpoint, heads=heads)
    if heads:
        config.only("head_size", found.keys // found.heads)
    hidden = config.integer("hidden_size", found.hidden)
    attention = config.integer("attention_hidden_size", hidden)
    return RWKVConfig(
        layers=found.layers,
        hidden=hidden,
        keys=attention,
        values=attention,
        ffn=config.integer("intermediate_size", found.ffn),
        vocab_size=config.integer("vocab_size", found.vocab_size),
        heads=found.heads,
        norm_eps=config.positive("layer_norm_epsilon", 1e-5),
        # Training divides by the divisor before the norm; these weights expect the epsilon that amounts to the same.
        head_norm_eps=1e-5 * config.positive("head_size_divisor", 8) ** 2,
        tied=config.flag("tie_word_embeddings", False),
    )
