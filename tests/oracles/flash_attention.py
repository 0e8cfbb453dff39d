"""Stands in for the package `flash_attn`, which needs a GPU: its one function that fla's models call here, in torch."""

from __future__ import annotations

import importlib.machinery
import sys
import types

import torch
from torch.nn import functional as F


def flash_attn_func(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool, window_size: tuple[int, int]
) -> torch.Tensor:
    """q: [B, T, H, D]; k, v: [B, S, G, D], of which the queries are the last T. window_size: to the left and right."""
    assert causal
    queries, keys = q.shape[1], k.shape[1]
    back = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
    seen = (back >= 0) & ((back <= window_size[0]) | (window_size[0] < 0))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, seen, enable_gqa=True).transpose(1, 2)


def install() -> None:
    """To be called before fla is imported."""
    module = types.ModuleType("flash_attn")
    module.__spec__ = importlib.machinery.ModuleSpec("flash_attn", None)
    module.__dict__.update(flash_attn_func=flash_attn_func, flash_attn_varlen_func=None)
    sys.modules["flash_attn"] = module
