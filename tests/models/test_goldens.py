"""Tiny checkpoints in public layouts, against logits that other implementations computed from them in fp32."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file

from ostinato.kernels.dispatch import product, supported_dtypes
from ostinato.models.base import Model
from ostinato.models.checkpoint import open_checkpoint
from ostinato.models.registry import load_model
from tests.models.goldens import PATHS, golden_values
from tests.models.running import Reader, continue_greedily, relative_error

# Two correct fp32 implementations differ by about 1e-6.
FP32_ERROR = 1e-5
# Twice what was measured with weights and inputs of projections in bf16: the larger of the two prompts.
BF16_ERROR = {
    "mamba_hf": 0.092,
    "mamba_orig": 0.052,
    "mamba2_hf": 0.032,
    "mamba2_orig": 0.024,
    "mamba2_codestral_like": 0.014,
    "rwkv4_hf": 0.009,
    "rwkv4_pth": 0.009,
    "rwkv5_hf": 0.010,
    "rwkv5_pth": 0.010,
    "rwkv6_fla": 0.010,
    "rwkv6_hf": 0.010,
    "rwkv6_pth": 0.010,
    "rwkv7_fla": 0.020,
    "rwkv7_pth": 0.020,
    "bamba": 0.028,
    "falcon_h1": 0.014,
    "granite4": 0.007,
    "qwen3_next": 0.060,
    "gla": 0.020,
    "gla_swa": 0.016,
    "recurrent_gemma": 0.011,
    "samba": 0.030,
    "retnet": 0.020,
    "hgrn": 0.014,
    "hgrn2": 0.009,
    "delta_net": 0.024,
    "delta_net_negeig": 0.035,
    "gated_deltanet": 0.025,
    "kda": 0.026,
    "falcon_mamba": 0.017,
    "xlstm": 0.024,
    "based": 0.042,
    "jrt": 0.028,
}

PACKED = product(torch.empty(0)) != "plain"
BF16 = torch.bfloat16 in supported_dtypes(torch.device("cpu"))

OWN_DTYPES = [("rwkv7_fla", torch.bfloat16 if BF16 else torch.float32), ("mamba_hf", torch.float32)]
needs_bf16 = pytest.mark.skipif(not BF16, reason="needs a CPU with bf16 instructions: AVX-512 or newer")
each_golden = pytest.mark.parametrize("name", PATHS)
each_prompt = pytest.mark.parametrize("prompt", ["short", "long"])
Record = Callable[[str, object], None]


@functools.cache
def golden_model(name: str, dtype: torch.dtype) -> Model:
    return load_model(open_checkpoint(PATHS[name]), dtype=dtype)


@each_prompt
@each_golden
def test_logits_in_fp32(name: str, prompt: str, record_property: Record) -> None:
    golden = golden_values(name)
    expected = golden[f"{prompt}.logits"]
    ours = Reader(golden_model(name, torch.float32)).read(golden[f"{prompt}.input_ids"].tolist())
    error = measure(ours, expected, record_property)
    assert error <= FP32_ERROR


@each_prompt
@each_golden
def test_greedy_continuation_token_by_token(name: str, prompt: str, record_property: Record) -> None:
    golden = golden_values(name)
    ids, expected = golden[f"{prompt}.greedy_ids"].tolist(), golden[f"{prompt}.greedy_logits"]
    tokens, logits = continue_greedily(
        golden_model(name, torch.float32), golden[f"{prompt}.input_ids"].tolist(), len(ids)
    )
    error = measure(logits[-len(ids) :], expected, record_property)
    assert tokens == ids
    assert error <= FP32_ERROR


@needs_bf16
@each_prompt
@each_golden
def test_logits_in_bf16(name: str, prompt: str, record_property: Record) -> None:
    golden = golden_values(name)
    expected = golden[f"{prompt}.logits"]
    ours = Reader(golden_model(name, torch.bfloat16)).read(golden[f"{prompt}.input_ids"].tolist())
    error = measure(ours, expected, record_property)
    assert error <= BF16_ERROR[name]


@pytest.mark.parametrize(("name", "expected"), OWN_DTYPES)
def test_the_checkpoints_own_dtype_is_the_default_where_it_is_computed(name: str, expected: torch.dtype) -> None:
    assert load_model(open_checkpoint(PATHS[name])).dtype == expected


@pytest.mark.parametrize(("name", "file"), [("mamba_hf", "model.safetensors"), ("gla", "model.safetensors")])
def test_weight_bytes_count_the_copy_that_a_tied_head_makes(name: str, file: str) -> None:
    stored = load_file(PATHS[name] / file)
    copied = () if "lm_head.weight" in stored or not PACKED else (stored["backbone.embeddings.weight"],)
    elements = sum(tensor.numel() for tensor in (*stored.values(), *copied))
    assert golden_model(name, torch.float32).weight_bytes == 4 * elements


def measure(ours: torch.Tensor, expected: torch.Tensor, record: Record) -> float:
    error = relative_error(ours, expected)
    record("relative_error", error)
    record("max_difference", float((ours - expected).abs().max()))
    return error
