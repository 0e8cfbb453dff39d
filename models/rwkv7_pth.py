"""RWKV-7 in its original layout: one `.pth` file without a config.

It is the fla layout under other names, with the low-rank matrices transposed, so it is read as that. All sizes follow
from the shapes.
"""

import re

import torch
from torch import Tensor

from ostinato.models.checkpoint import Checkpoint
from ostinato.models.errors import CheckpointError
from ostinato.models.layers import WeightReader
from ostinato.models.rwkv7 import RWKV7
from ostinato.models.rwkv7_config import RWKV7Config

_TOP = {"model.embeddings": "emb", "model.norm": "ln_out", "lm_head": "head"}
_PARTS = {
    "pre_norm": "ln0",
    "attn_norm": "ln1",
    "ffn_norm": "ln2",
    "attn.r_proj": "att.receptance",
    "attn.k_proj": "att.key",
    "attn.v_proj": "att.value",
    "attn.o_proj": "att.output",
    "attn.g_norm": "att.ln_x",
}
_BLOCK_NUMBER = re.compile("[0-9]{1,9}")
_LOW_RANK = {"0.weight": "1", "2.weight": "2", "2.bias": "0"}


def original_name(name: str) -> str:
    """The name in the `.pth` file of a tensor that the fla layout calls `name`."""
    stem, _, kind = name.rpartition(".")
    if stem in _TOP:
        return f"{_TOP[stem]}.{kind}"
    layer, _, part = name.removeprefix("model.layers.").partition(".")
    if ".lora." in part:
        owner, _, which = part.partition("_lora.lora.")
        return f"blocks.{layer}.att.{owner.removeprefix('attn.')}{_LOW_RANK[which]}"
    module, _, kind = part.rpartition(".")
    return f"blocks.{layer}.{_PARTS.get(module, module.replace('attn', 'att'))}.{kind}"


def _is_transposed(name: str) -> bool:
    return ".lora." in name and name.endswith(".weight")


class FlaView:
    """A `.pth` checkpoint under the names and orientations of the fla layout."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def has(self, name: str) -> bool:
        """Whether the tensor is on disk, taken or not."""
        return self._checkpoint.has(original_name(name))

    def shape(self, name: str, dims: int | None = None) -> tuple[int, ...]:
        """See `Checkpoint.shape`; of low-rank factors in the fla layout's orientation."""
        shape = self._checkpoint.shape(original_name(name), dims)
        return shape[::-1] if _is_transposed(name) else shape

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """See `Checkpoint.take`; low-rank factors come transposed, as views."""
        if _is_transposed(name):
            return self._checkpoint.take(original_name(name), shape[::-1]).T
        return self._checkpoint.take(original_name(name), shape)


def read_config(checkpoint: Checkpoint) -> RWKV7Config:
    """Reads all sizes from the shapes. Raises CheckpointError."""
    vocab_size, hidden = checkpoint.shape("emb.weight", 2)
    heads, head = checkpoint.shape("blocks.0.att.r_k", 2)
    if heads * head != hidden:
        raise CheckpointError(
            f"{checkpoint.path}: 'blocks.0.att.r_k' has {heads} heads of {head}, which do not make up {hidden} channels"
        )
    numbers = [name.split(".")[1] for name in checkpoint.names if name.startswith("blocks.")]
    return RWKV7Config(
        layers=1 + max(int(number) for number in numbers if _BLOCK_NUMBER.fullmatch(number)),
        hidden=hidden,
        head=head,
        ffn=checkpoint.shape("blocks.0.ffn.key.weight", 2)[0],
        vocab_size=vocab_size,
        norm_eps=1e-5,
        head_norm_eps=64e-5,  # for heads of any size
        tied=False,
    )


def load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> RWKV7:
    """The layout of the files published at BlinkDL's repositories."""
    # Layer 0 has no earlier values to mix in, but some files carry the unused tensors for it.
    checkpoint.drop(*(f"blocks.0.att.v{i}" for i in range(3)))
    read = WeightReader(FlaView(checkpoint), device, dtype)
    return RWKV7(read, read_config(checkpoint), checkpoint.architecture)
