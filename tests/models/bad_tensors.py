"""Checkpoints whose files are in order, but whose tensors are not what their architecture needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.models import bad_files as bad
from tests.models.bad_cases import BIN, PTH, SAFETENSORS, BadCase
from tests.models.bad_options import OPTION_CASES


@dataclass(frozen=True, slots=True)
class Family:
    """A golden folder, the file that holds its weights, one of its tensors, and what users are told it is."""

    golden: str
    file: str
    tensor: str
    described: str


FAMILIES = [
    Family("mamba_hf", SAFETENSORS, "backbone.norm_f.weight", "MambaForCausalLM"),
    Family("mamba_orig", BIN, "backbone.layers.1.mixer.D", "Mamba in the original state-spaces layout"),
    Family("mamba2_hf", SAFETENSORS, "backbone.layers.1.mixer.dt_bias", "Mamba2ForCausalLM"),
    Family("mamba2_orig", BIN, "backbone.layers.1.mixer.norm.weight", "Mamba-2 in the original state-spaces layout"),
    Family("rwkv7_fla", SAFETENSORS, "model.layers.1.attn.r_proj.weight", "RWKV7ForCausalLM"),
    Family("rwkv7_pth", PTH, "blocks.1.att.w1", "RWKV-7 as .pth file"),
    Family("gla", SAFETENSORS, "model.layers.1.attn.q_proj.weight", "GLAForCausalLM"),
    Family("gla_swa", SAFETENSORS, "model.layers.1.attn.k_proj.weight", "GLAForCausalLM"),
    Family("retnet", SAFETENSORS, "model.layers.1.attn.o_proj.weight", "RetNetForCausalLM"),
    Family("hgrn", SAFETENSORS, "model.lower_bounds", "HGRNForCausalLM"),
    Family("hgrn2", SAFETENSORS, "model.layers.1.attn.f_proj.weight", "HGRN2ForCausalLM"),
    Family("delta_net", SAFETENSORS, "model.layers.1.attn.k_conv1d.weight", "DeltaNetForCausalLM"),
    Family("gated_deltanet", SAFETENSORS, "model.layers.1.attn.A_log", "GatedDeltaNetForCausalLM"),
    Family("kda", SAFETENSORS, "model.layers.1.attn.dt_bias", "KDAForCausalLM"),
    Family("based", BIN, "model.transformer.layers.2.mixer.Wqkv.weight", "BASED in its authors' layout"),
    Family("jrt", BIN, "model.transformer.layers.1.mixer.proj_k_enc.weight", "JRT-RNN in its authors' layout"),
    Family("samba", SAFETENSORS, "backbone.layers.1.mixer.q_proj.weight", "SambaForCausalLM"),
    Family("bamba", SAFETENSORS, "model.layers.1.self_attn.q_proj.weight", "BambaForCausalLM"),
    Family("falcon_h1", SAFETENSORS, "model.layers.1.mamba.dt_bias", "FalconH1ForCausalLM"),
    Family(
        "granite4", SAFETENSORS, "model.layers.1.block_sparse_moe.output_linear.weight", "GraniteMoeHybridForCausalLM"
    ),
    Family("qwen3_next", SAFETENSORS, "model.layers.1.mlp.experts.2.up_proj.weight", "Qwen3NextForCausalLM"),
]


def _longer(value: torch.Tensor) -> torch.Tensor:
    return torch.cat([value, value[:1]])


def family_cases(family: Family) -> list[BadCase]:
    """The faults that every family has to notice."""
    tensor, where = family.tensor, rf"{family.golden}/{family.file}"

    def case(fault: str, change: bad.Change, message: str) -> BadCase:
        return BadCase(f"{family.golden}_{fault}", bad.saved(family.file, change), f"{where}.*{message}", family.golden)

    def put(make: Callable[[torch.Tensor], torch.Tensor]) -> bad.Change:
        return lambda tensors: {**tensors, tensor: make(tensors[tensor])}

    return [
        case(
            "tensor_missing",
            lambda t: {n: v for n, v in t.items() if n != tensor},
            f"tensor '{tensor}' is missing",
        ),
        case(
            "tensor_renamed",
            lambda t: {n + "s" if n == tensor else n: v for n, v in t.items()},
            f"tensor '{tensor}' is missing; names like it: '{tensor}s'",
        ),
        case("tensor_too_long", put(_longer), rf"tensor '{tensor}' has shape \(.*\), but \(.*\) is expected"),
        case("tensor_one_more_axis", put(lambda v: v[None, None]), f"tensor '{tensor}' has shape"),
        case("tensor_scalar", put(lambda v: torch.zeros(())), rf"tensor '{tensor}' has shape \(\)"),
        case(
            "tensor_of_integers",
            put(lambda v: v.int()),
            f"tensor '{tensor}' has dtype int32, expected one of",
        ),
        case(
            "tensor_of_doubles",
            put(lambda v: v.double()),
            f"tensor '{tensor}' has dtype float64, expected one of",
        ),
        case(
            "tensor_left_over",
            lambda t: {**t, "extra.weight": torch.zeros(1)},
            rf"holds tensors that {family.described} has no place for \(1\): 'extra\.weight'$",
        ),
    ]


LEFT_OVER = r"model\.safetensors holds tensors .* no place for \(\d+\): 'backbone\.layers\.1\..* and \d+ more$"
CONFIG_CASES = [
    BadCase(name, bad.config(**{key: value}), message, golden)
    for name, golden, key, value, message in [
        ("too_few_layers", "mamba_hf", "num_hidden_layers", 1, LEFT_OVER),
        (
            "too_many_layers",
            "mamba_hf",
            "num_hidden_layers",
            9,
            r"tensor 'backbone\.layers\.3\..*' is missing",
        ),
        (
            "vocabulary_too_small",
            "mamba_hf",
            "vocab_size",
            7,
            r"'backbone\.embeddings\.weight' has shape \(288, 40\)",
        ),
        (
            "hidden_size_a_string",
            "mamba_hf",
            "hidden_size",
            "40",
            r"config\.json: hidden_size must be .*'40'",
        ),
        ("hidden_size_negative", "gla", "hidden_size", -1, r"config\.json: hidden_size must be"),
        ("layers_a_list", "rwkv7_fla", "num_hidden_layers", [2], r"config\.json: num_hidden_layers must be"),
        ("heads_do_not_divide", "gla", "num_heads", 7, r"config\.json: num_heads is 7"),
        (
            "odd_heads_do_not_turn",
            "retnet",
            "num_heads",
            16,
            r"config\.json: num_heads is 32, which does not",
        ),
        ("heads_of_another_size", "hgrn2", "expand_ratio", 7, r"config\.json: expand_ratio is 7, which does not"),
        (
            "value_heads_do_not_divide",
            "kda",
            "num_v_heads",
            4,
            r"config\.json: num_heads is 3, which does not",
        ),
        (
            "heads_against_expand",
            "mamba2_hf",
            "num_heads",
            4,
            r"config\.json: num_heads times head_dim is 64, .* 80 of 40",
        ),
        ("kinds_unknown", "recurrent_gemma", "_block_types", ["mamba"], r"_block_types must be a list of 'recurrent'"),
        ("kinds_none", "recurrent_gemma", "_block_types", [], r"_block_types must be a list of 'recurrent'"),
        ("mlp_odd", "recurrent_gemma", "intermediate_size", 161, r"intermediate_size is 2, which does not divide 161"),
        ("attention_a_word", "samba", "attn", "all", r"config\.json: attn must be an object or a list of objects"),
        (
            "attention_beyond_the_layers",
            "samba",
            "attn",
            {"layers": [4], "num_heads": 3, "window_size": 7},
            r"config\.json: layers must be a list of integers from 0 to 3, found \[4\]",
        ),
        ("attention_layers_negative", "bamba", "attn_layer_indices", [-1], r"attn_layer_indices must be a list of int"),
        ("multipliers_too_few", "falcon_h1", "ssm_multipliers", [1.0], r"ssm_multipliers must be a list of 5 numbers"),
        (
            "kinds_too_few",
            "qwen3_next",
            "layer_types",
            ["full_attention"],
            r"layer_types names 1 layers, and there are",
        ),
        ("unknown_kinds", "granite4", "layer_types", ["rwkv"] * 3, r"layer_types must be a list of 'mamba' and"),
        ("fewer_kinds", "granite4", "layer_types", ["mamba"], r"layer_types names 1 layers, and there are"),
        (
            "negative_experts",
            "granite4",
            "num_local_experts",
            -1,
            r"num_local_experts must be zero or a positive integer",
        ),
        ("more_chosen", "granite4", "num_experts_per_tok", 99, r"num_experts_per_tok must be at most \d+, found"),
        ("experts_too_few", "qwen3_next", "num_experts_per_tok", 99, r"num_experts_per_tok must be at most \d+, found"),
        ("rope_theta_too_large", "falcon_h1", "rope_theta", 1e16, r"rope_theta must be a finite number"),
        ("groups_do_not_divide", "mamba2_hf", "n_groups", 2, r"config\.json: n_groups is 2, which does not divide 5"),
        (
            "norm_eps_not_a_number",
            "mamba_hf",
            "layer_norm_epsilon",
            float("nan"),
            r"config\.json: layer_norm_epsilon",
        ),
    ]
]


def _number(golden: str, key: str, value: float | int, message: str, **changes: object) -> BadCase:
    shown = f"{value:.0e}" if abs(value) > 1e300 else str(value)
    message = rf"{golden}/config\.json: {key} {message}"
    return BadCase(f"{golden}_{key}_{shown}", bad.config(**{key: value}, **changes), message, golden)


EPSILONS = [
    *((golden, "layer_norm_epsilon") for golden in ("mamba_hf", "mamba2_hf")),
    *((golden, "norm_eps") for golden in ("gla", "kda", "rwkv7_fla")),
    ("samba", "norm_eps"),
    ("recurrent_gemma", "rms_norm_eps"),
    ("bamba", "rms_norm_eps"),
    ("granite4", "rms_norm_eps"),
    ("qwen3_next", "rms_norm_eps"),
]
SIZES = [
    *((golden, "expand") for golden in ("mamba_hf", "mamba2_hf")),
    *((golden, "expand_k") for golden in ("gla", "retnet")),
    *((golden, "expand_v") for golden in ("gla", "delta_net", "gated_deltanet", "kda")),
    *((golden, "hidden_ratio") for golden in ("gla", "rwkv7_fla")),
    ("hgrn", "expand_ratio"),
]
FFN_SIZE = {"intermediate_size": None}
NUMBER_CASES = [
    *(_number(*key, 10**305, r"must be a finite number .*, found 10{59}\.\.\. \(306") for key in EPSILONS),
    *(_number(*key, value, "must be above zero") for key in EPSILONS for value in (0, -1e-5)),
    *(_number(*key, 1e308, r"must be a finite number .*1e\+308", **FFN_SIZE) for key in SIZES),
    *(_number(*key, 0.001, "is too small|makes 0", **FFN_SIZE) for key in SIZES),
    _number("gla", "clamp_min", -1e308, "must be a finite number"),
    _number("rwkv7_fla", "num_hidden_layers", 10**305, "must be a positive integer"),
    _number("gla", "hidden_size", 10**10, "must be a positive integer up to 1000000000, found 10000000000"),
    BadCase(
        "mamba_orig_expand_too_large",
        bad.config(ssm_cfg={"expand": 1e308}),
        r"mamba_orig/config\.json: expand must be a finite number",
        "mamba_orig",
    ),
]
ORIGINAL_HEADS = BadCase(
    "mamba2_orig_heads_do_not_divide",
    bad.config(ssm_cfg={"layer": "Mamba2", "headdim": 7}),
    r"mamba2_orig/config\.json: headdim is 7, which does not divide 80",
    "mamba2_orig",
)
STEP_LIMIT_CASES = [
    BadCase(
        f"step_limit_{name}",
        bad.config(time_step_limit=value),
        rf"mamba2_hf/config\.json: time_step_limit must be {message}",
        "mamba2_hf",
    )
    for name, value, message in [
        ("a_number", 0.1, "a list of two numbers, .* found 0.1"),
        ("of_three", [0.0, 0.1, 1.0], r"a list of two numbers, .* found \[0.0, 0.1, 1.0\]"),
        ("of_words", ["0.0", "Infinity"], "a list of two numbers"),
        ("of_flags", [False, True], "a list of two numbers"),
        ("unknown_mark", [0.0, {"__float__": "inf"}], r"a list of two numbers, .*__float__"),
        ("not_a_number", [0.0, {"__float__": "NaN"}], r"a list of two numbers, .*nan"),
        ("too_large", [0, 10**400], "a list of two numbers"),
        ("out_of_order", [0.1, 0.01], "two numbers in order"),
        ("nothing_left", [-1.0, 0.0], "two numbers in order, the second above zero"),
    ]
]
NOT_TIED = BadCase(
    "mamba_orig_no_head_but_not_tied",
    lambda folder: bad.saved(BIN, lambda t: {n: v for n, v in t.items() if n != "lm_head.weight"})(
        Path(bad.config(tie_embeddings=False)(folder))
    ),
    rf"{BIN}: tensor 'lm_head\.weight' is missing",
    "mamba_orig",
)
LOW_RANK = "model.layers.1.attn.w_lora.lora.0.weight"
LOW_RANK_SCALAR = BadCase(
    "rwkv7_fla_low_rank_scalar",
    bad.saved(SAFETENSORS, lambda t: {**t, LOW_RANK: torch.zeros(())}),
    rf"model\.safetensors: tensor '{LOW_RANK}' has shape \(\)",
    "rwkv7_fla",
)
BLOCK_OF_5000_DIGITS = BadCase(
    "pth_block_of_5000_digits",
    bad.saved(PTH, lambda t: {**t, f"blocks.{'9' * 5000}.att.k_k": torch.zeros(1)}),
    rf"{PTH} holds tensors .*no place for \(1\): 'blocks\.9",
    "rwkv7_pth",
)
NO_SUCH_BLOCK = BadCase(
    "pth_block_without_number",
    bad.saved(PTH, lambda t: {**t, "blocks.last.att.k_k": torch.zeros(1)}),
    rf"{PTH}.*'blocks\.last\.att\.k_k'",
    "rwkv7_pth",
)
LOADING_CASES = [
    *(case for family in FAMILIES for case in family_cases(family)),
    *CONFIG_CASES,
    *OPTION_CASES,
    LOW_RANK_SCALAR,
    NO_SUCH_BLOCK,
    BLOCK_OF_5000_DIGITS,
    NOT_TIED,
    ORIGINAL_HEADS,
    *STEP_LIMIT_CASES,
    *NUMBER_CASES,
]
