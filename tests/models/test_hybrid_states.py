"""How much memory hybrids have, and who decides it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from ostinato.models import bamba, falcon_h1, qwen3_next_config, recurrent_gemma, samba
from ostinato.models.checkpoint import Checkpoint, open_checkpoint
from ostinato.models.errors import UnsupportedModelError
from ostinato.models.mamba2_hybrid import ATTENTION_WINDOW, SINKS
from ostinato.models.registry import load_model
from tests.models.goldens import PATHS
from tests.models.running import Reader, relative_error

POSITION = 8
FALCON_H1_05B = {
    "hidden_size": 1024,
    "num_hidden_layers": 36,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "mamba_d_ssm": 1536,
    "mamba_n_heads": 24,
    "mamba_d_head": 64,
    "mamba_d_state": 128,
    "rope_theta": 1e11,
}


def described(config: dict[str, Any], window: int | None = None) -> Checkpoint:
    held = SimpleNamespace(config=config, folder=Path(), attention_window=window)
    held.hold_window = lambda default: window or default
    return cast(Checkpoint, held)


def test_bytes_of_published_sizes() -> None:
    """In bf16. RecurrentGemma-2b and Samba are their classes' defaults."""
    gemma = recurrent_gemma.read_config(described({"num_key_value_heads": 1, "intermediate_size": 15360}))
    recurrent, ring = 18 * (2560 * 4 + 3 * 2560 * 2), 8 * 2048 * 2 * 256 * 2
    assert gemma.state(torch.bfloat16).bytes_per_state == recurrent + ring + POSITION
    mamba, ring = 9 * (4608 * 16 * 4 + 3 * 4608 * 2), 9 * 2048 * 2 * 2304 * 2
    assert samba.read_config(described({})).state(torch.bfloat16).bytes_per_state == mamba + ring + POSITION


def test_bytes_of_qwen3_next_80b() -> None:
    """Its class's defaults: 36 recurrent layers and 12 of attention."""
    spec = qwen3_next_config.read_config(described({}, 1000)).state(torch.bfloat16)
    recurrent = 36 * (32 * 128 * 128 * 4 + 3 * (2 * 16 * 128 + 32 * 128) * 2)
    assert spec.bytes_per_state == recurrent + 12 * 1000 * 2 * 2 * 256 * 2 + POSITION


def test_full_attention_holds_as_many_tokens_as_it_is_told() -> None:
    ssm = 36 * (1536 * 128 * 4 + 3 * (1536 + 256) * 2)
    for window, tokens in ((None, ATTENTION_WINDOW), (100, 100)):
        spec = falcon_h1.read_config(described(FALCON_H1_05B, window)).hybrid.state(torch.bfloat16)
        assert spec.bytes_per_state == ssm + 36 * tokens * 2 * 2 * 64 * 2 + POSITION


@pytest.mark.parametrize("window", [1, SINKS])
def test_a_window_without_room_beside_the_sinks_is_refused(window: int) -> None:
    with pytest.raises(UnsupportedModelError, match=f"attention window of {window} has no room beside {SINKS} sinks"):
        bamba.read_config(described({}, window))


@pytest.mark.parametrize("name", ["bamba", "falcon_h1", "granite4", "qwen3_next"])
def test_a_window_is_exact_up_to_its_length_and_not_beyond(name: str) -> None:
    tokens, logits = list(range(10, 50)), []
    for window in (None, 30):
        checkpoint = open_checkpoint(PATHS[name])
        checkpoint.attention_window = window
        logits.append(Reader(load_model(checkpoint, dtype=torch.float32)).read(tokens))
    assert relative_error(logits[1][:30], logits[0][:30]) <= 1e-6
    assert relative_error(logits[1][30:], logits[0][30:]) > 1e-3
