"""Random checkpoints against independent implementations: logits at every position, and 64 greedy tokens.

Ours continues a prompt token by token. The oracle reads the prompt and those tokens at once; where its most likely
token is ours at every step, its own greedy continuation is the same. OSTINATO_LONG=1 runs many more configurations.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ostinato.models.checkpoint import open_checkpoint
from ostinato.models.registry import load_model
from tests.models import checkpoints, weights
from tests.models.checkpoints import RandomCheckpoint
from tests.models.goldens import PATHS, golden_values
from tests.models.public_checkpoints import PUBLIC
from tests.models.random_checkpoints import TINY
from tests.models.running import Reader, continue_greedily, relative_error
from tests.oracles.client import Oracle

NEW_TOKENS = 64
# Two correct fp32 implementations differ by about 1e-6 on few layers and 1e-5 on 24.
MAX_RELATIVE_ERROR = {"tiny": 1e-5, "public": 5e-5}
SEEDS = range(100 if os.environ.get("OSTINATO_LONG") == "1" else 6)

MAMBA2_HEADS = {"hidden_size": 28, "expand": 2, "num_heads": 8, "head_dim": 7, "n_groups": 2}

FLA_GOLDENS = ["gla", "gla_swa", "retnet", "hgrn", "hgrn2", "delta_net", "delta_net_negeig", "gated_deltanet", "kda"]

Oracles = Callable[[str], Oracle]
Record = Callable[[str, object], None]


@pytest.mark.parametrize(
    ("name", "golden"),
    [
        ("mamba", "mamba_hf"),
        ("mamba", "mamba_orig"),
        ("mambapy_blocks", "mamba_orig"),
        ("mamba2", "mamba2_hf"),
        ("mamba2", "mamba2_orig"),
        ("mamba2", "mamba2_codestral_like"),
        ("rwkv_transformers", "rwkv4_hf"),
        ("rwkv_pip_v6", "rwkv4_hf"),
        ("rwkv_pip_v6", "rwkv4_pth"),
        ("rwkv_pip_v6", "rwkv5_hf"),
        ("rwkv_pip_v6", "rwkv5_pth"),
        ("rwkv_pip_v6", "rwkv6_hf"),
        ("rwkv_pip_v6", "rwkv6_pth"),
        ("rwkv_pip", "rwkv7_pth"),
        ("fla_models", "rwkv7_fla"),
        ("fla_models", "gla"),
        ("fla_models", "gla_swa"),
        ("fla_models", "samba"),
        ("recurrent_gemma", "recurrent_gemma"),
        ("mamba", "falcon_mamba"),
        ("xlstm", "xlstm"),
        *(("fla_naive", golden) for golden in FLA_GOLDENS),
        ("based", "based"),
        ("jrt", "jrt"),
        ("mamba2_hybrids", "bamba"),
        ("mamba2_hybrids", "falcon_h1"),
        ("mamba2_hybrids", "granite4"),
        ("mamba2_hybrids", "qwen3_next"),
    ],
)
def test_oracle_reproduces_the_golden_logits(name: str, golden: str, oracle: Oracles) -> None:
    """If this fails, it is the oracle or the way it is called that has changed, not our model."""
    values = golden_values(golden)
    ids = values["short.input_ids"].tolist()
    logits = oracle(name).logits(PATHS[golden], [asked(name, len(ids), ids)])[0]
    assert relative_error(logits, values["short.logits"]) <= MAX_RELATIVE_ERROR["tiny"]


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"seed{seed}")
@pytest.mark.parametrize("family", TINY)
def test_random_tiny_configuration(
    family: str, seed: int, tmp_path: Path, oracle: Oracles, record_property: Record
) -> None:
    made = TINY[family](seed, tmp_path / family)
    prompt_length = random.Random(f"prompt {seed}").randint(1, 32)
    agrees_with_oracles(made, prompt_length, MAX_RELATIVE_ERROR["tiny"], oracle, record_property)


@pytest.mark.parametrize(
    ("family", "fixed"),
    [
        # 100 times 0.29 is 28.999999999999996.
        ("gla", {"hidden_size": 100, "num_heads": 1, "num_kv_heads": None, "expand_k": 0.29, "expand_v": 0.57}),
        # The epsilon of the norm of heads goes with the head size in fla's layout, and does not in the original one.
        ("rwkv7_fla", {"hidden_size": 96, "head_dim": 32}),
        ("rwkv7_pth", {"hidden_size": 96, "head_dim": 32}),
        # An activation of a gate that is not there.
        ("gated_deltanet", {"use_gate": False, "output_gate_activation": "sigmoid"}),
        # 147 channels, rounded up to 160.
        ("rwkv7_fla", {"hidden_size": 64, "head_dim": 64, "intermediate_size": None, "hidden_ratio": 2.3}),
        # Step sizes cut off at both ends, groups of several heads, heads of an odd size.
        ("mamba2_hf", {**MAMBA2_HEADS, "time_step_limit": [0.05, 0.2]}),
        ("mamba2_hf", {**MAMBA2_HEADS, "time_step_limit": [0.05, {"__float__": "Infinity"}]}),
    ],
    ids=[
        "gla-inexact-fraction",
        "rwkv7_fla-small-heads",
        "rwkv7_pth-small-heads",
        "gated_deltanet-without-gate",
        "rwkv7_fla-rounded-ffn",
        "mamba2_hf-limited",
        "mamba2_hf-unlimited-above",
    ],
)
def test_rare_configuration(
    family: str, fixed: dict[str, Any], tmp_path: Path, oracle: Oracles, record_property: Record
) -> None:
    made = TINY[family](1, tmp_path / family, **fixed)
    agrees_with_oracles(made, 12, MAX_RELATIVE_ERROR["tiny"], oracle, record_property)


@pytest.mark.long(minutes=1)
@pytest.mark.parametrize("name", PUBLIC)
def test_public_size(name: str, oracle: Oracles, record_property: Record) -> None:
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path, which outlives the run: these are large
        made = PUBLIC[name](0, Path(folder) / name)
        agrees_with_oracles(made, 32, MAX_RELATIVE_ERROR["public"], oracle, record_property)


def agrees_with_oracles(
    made: RandomCheckpoint, prompt_length: int, bound: float, oracle: Oracles, record: Record
) -> None:
    prompt = random.Random(prompt_length).choices(range(made.vocab_size), k=prompt_length)
    model = load_model(open_checkpoint(made.path), dtype=torch.float32)
    tokens, ours = continue_greedily(model, prompt, NEW_TOKENS)
    record("distinct_tokens", len(set(tokens)))
    text = prompt + tokens[:-1]
    answers = {name: oracle(name).logits(made.path, [asked(name, prompt_length, text)])[0] for name in made.oracles}
    record("relative_error", max(relative_error(ours, theirs) for theirs in answers.values()))
    record("max_difference", max(float((ours - theirs).abs().max()) for theirs in answers.values()))
    for name, theirs in answers.items():
        best = theirs[prompt_length - 1 :, : made.vocab_size].topk(2)
        margin = float((best.values[:, 0] - best.values[:, 1]).min())
        where = f"{name} on {made.label}; its closest two tokens are {margin:.1e} apart"
        assert relative_error(ours, theirs) <= bound, where
        assert best.indices[:, 0].tolist() == tokens, where


def asked(oracle: str, prompt_length: int, text: list[int]) -> list[int]:
    """What an oracle is asked: the text, and before it the length of the prompt where that is not all the same."""
    return [prompt_length, *text] if oracle == "jrt" else text


MAMBA = {
    "architectures": ["MambaForCausalLM"],
    "vocab_size": 90,
    "hidden_size": 28,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "state_size": 6,
    "conv_kernel": 4,
    "time_step_rank": 3,
    "use_bias": True,
    "use_conv_bias": True,
    "tie_word_embeddings": False,
}
MAMBA2 = {
    "architectures": ["Mamba2ForCausalLM"],
    "vocab_size": 90,
    "num_hidden_layers": 2,
    **MAMBA2_HEADS,
    "state_size": 6,
    "conv_kernel": 4,
    "use_bias": True,
    "use_conv_bias": True,
    "tie_word_embeddings": False,
}
RWKV7 = {
    "vocab_size": 90,
    "hidden_size": 64,
    "head_dim": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "decay_low_rank_dim": 8,
    "a_low_rank_dim": 8,
    "v_low_rank_dim": 8,
    "gate_low_rank_dim": 8,
    "tie_word_embeddings": False,
}
UNREAD = {"blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2"}


@pytest.mark.parametrize("family", ["mamba", "mamba2", "rwkv7"])
def test_every_tensor_of_a_random_checkpoint_matters(family: str, tmp_path: Path) -> None:
    """Without this, agreement with an oracle could mean that a mechanism did nothing in either."""
    tensors = {
        "mamba": lambda: weights.mamba_tensors(MAMBA, seed=1),
        "mamba2": lambda: weights.mamba2_tensors(MAMBA2, seed=1),
        "rwkv7": lambda: weights.rwkv7_tensors(RWKV7, seed=1),
    }[family]()
    ids = random.Random(1).choices(range(90), k=24)
    whole = logits_of(family, tensors, ids, tmp_path)
    effects = {
        name: relative_error(logits_of(family, {**tensors, name: neutral(name, tensor)}, ids, tmp_path), whole)
        for name, tensor in tensors.items()
        if name not in UNREAD
    }
    assert min(effects.values()) > 3e-3, sorted(effects.items(), key=lambda item: item[1])[:5]


def neutral(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """What the tensor would be if its mechanism were absent: ones for the weight of a norm, zeros otherwise."""
    is_norm = name.endswith(".weight") and ("norm" in name or ".ln" in name or name.startswith("ln"))
    return torch.ones_like(tensor) if is_norm else torch.zeros_like(tensor)


def logits_of(family: str, tensors: checkpoints.Tensors, ids: list[int], folder: Path) -> torch.Tensor:
    if family == "rwkv7":
        path = checkpoints.write_pth(folder / "model.pth", tensors, "float32")
    else:
        config = {"mamba": MAMBA, "mamba2": MAMBA2}[family]
        path = checkpoints.write_folder(folder / family, config, tensors, "float32", "safetensors")
    return Reader(load_model(open_checkpoint(path), dtype=torch.float32)).read(ids)
