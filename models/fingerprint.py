"""What tells two models apart: states of one are noise to another."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import Tensor

from ostinato.models.checkpoint import Checkpoint

BLOCK = 4096  # bytes
BLOCKS = 256  # of a large tensor that are looked at
NOT_MATHEMATICS = frozenset({"_name_or_path", "transformers_version", "torch_dtype", "dtype"})


def weights_fingerprint(checkpoint: Checkpoint) -> str:
    """SHA-256 in hex over every tensor's name, shape, dtype and bytes as stored; nothing is consumed.

    Of a tensor above 1 MiB it is 256 evenly spaced blocks of 4 KiB, the last one included: reading all of a large
    model again would double its loading time, and whoever trains a matrix further changes all of it.

    Raises CheckpointError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for name in sorted(checkpoint.names):
        tensor = checkpoint.peek(name)
        digest.update(repr((name, tuple(tensor.shape), str(tensor.dtype))).encode())
        for block in _blocks(tensor):
            digest.update(block)
    return digest.hexdigest()


def config_fingerprint(checkpoint: Checkpoint) -> str:
    """SHA-256 in hex of the configuration, but for entries that say only where it came from or how it is stored.

    The attention window that the user chose is part of it, where there is one.
    """
    kept = {key: value for key, value in checkpoint.config.items() if key not in NOT_MATHEMATICS}
    if checkpoint.attention_window is not None:
        kept["ostinato_attention_window"] = checkpoint.attention_window
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _blocks(tensor: Tensor) -> list[bytes]:
    # A single number may have any stride, and then no view of bytes; as_strided gives it the usual one.
    data = tensor.contiguous().as_strided((tensor.numel(),), (1,)).view(torch.uint8).numpy()
    if len(data) <= BLOCK * BLOCKS:
        return [data.tobytes()]
    last = len(data) - BLOCK
    return [data[start : start + BLOCK].tobytes() for start in (last * i // (BLOCKS - 1) for i in range(BLOCKS))]
