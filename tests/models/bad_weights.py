"""Bad weight files, one by one: safetensors, `.bin`, `.pth`."""

from __future__ import annotations

import torch

from tests.models import bad_files as bad
from tests.models.bad_cases import BIN, PTH, SAFETENSORS, BadCase, unsupported

TENSOR = torch.zeros(2, 2)
NOT_SAFETENSORS = r"mamba_hf/model\.safetensors \(\d+ bytes\) is truncated or not a safetensors file"
SAFETENSORS_CASES = [
    BadCase("safetensors_empty", bad.file_bytes(SAFETENSORS, lambda data: b""), r"model\.safetensors is empty"),
    BadCase("safetensors_data_cut_off", bad.file_bytes(SAFETENSORS, lambda data: data[:-1]), NOT_SAFETENSORS),
    BadCase("safetensors_data_too_long", bad.file_bytes(SAFETENSORS, lambda data: data + b"x"), NOT_SAFETENSORS),
    BadCase("safetensors_header_cut_off", bad.file_bytes(SAFETENSORS, lambda data: data[:100]), NOT_SAFETENSORS),
    BadCase("safetensors_few_bytes", bad.file_bytes(SAFETENSORS, lambda data: data[:5]), NOT_SAFETENSORS),
    BadCase(
        "safetensors_header_length_lies",
        bad.file_bytes(SAFETENSORS, lambda data: (2**40).to_bytes(8, "little") + data[8:]),
        NOT_SAFETENSORS,
    ),
    BadCase(
        "safetensors_header_not_json",
        bad.file_bytes(SAFETENSORS, lambda data: data[:8] + b"?" + data[9:]),
        NOT_SAFETENSORS,
    ),
    BadCase(
        "safetensors_is_html",
        bad.file_bytes(SAFETENSORS, lambda data: b"<!doctype html><p>Not found</p>"),
        NOT_SAFETENSORS,
    ),
    BadCase(
        "safetensors_shape_against_offsets",
        bad.safetensors_header({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, bytes(8)),
        NOT_SAFETENSORS,
    ),
    BadCase(
        "safetensors_type_unsupported",
        bad.safetensors_header({"a": {"dtype": "F8_E8M0", "shape": [4], "data_offsets": [0, 4]}}, bytes(4)),
        r"model\.safetensors: tensor 'a' has the unsupported type F8_E8M0",
    ),
    BadCase("safetensors_no_tensors", bad.safetensors_header({}), r"model\.safetensors holds no tensors"),
    BadCase(
        "git_lfs_pointer",
        bad.file_bytes(SAFETENSORS, lambda data: b"version https://git-lfs.github.com/spec/v1\nsize 1\n"),
        r"model\.safetensors is a Git LFS pointer.*git lfs pull",
    ),
]

NOT_LOADED = r"pytorch_model\.bin is truncated, damaged, or holds objects other than tensors"
NO_ZIP = r"pytorch_model\.bin is damaged, or not in the zip format"
TORCH_CASES = [
    BadCase(name, build, message, "mamba_orig")
    for name, build, message in [
        ("bin_empty", bad.file_bytes(BIN, lambda data: b""), r"pytorch_model\.bin is empty"),
        ("bin_cut_off", bad.file_bytes(BIN, lambda data: data[: len(data) // 2]), NOT_LOADED),
        ("bin_end_cut_off", bad.file_bytes(BIN, lambda data: data[:-1]), NOT_LOADED),
        ("bin_pickle_damaged", bad.damaged_pickle, NOT_LOADED),
        ("bin_is_text", bad.file_bytes(BIN, lambda data: b"hello"), NO_ZIP),
        ("bin_old_format", bad.saved(BIN, dict, zipped=False), NO_ZIP),
        ("bin_numpy_pickle", bad.raw_pickle(BIN, {"a": [1, 2]}), NO_ZIP),
        (
            "bin_a_list",
            bad.saved(BIN, lambda t: list(t.values())),
            r"model\.bin holds a list, not a dictionary",
        ),
        ("bin_no_tensors", bad.saved(BIN, lambda t: {}), r"pytorch_model\.bin holds no tensors"),
        (
            "bin_number",
            bad.saved(BIN, lambda t: {**t, "epoch": 3}),
            r"model\.bin: entry 'epoch' is a int, not a",
        ),
        (
            "bin_number_as_name",
            bad.saved(BIN, lambda t: dict[object, object]([*t.items(), (7, TENSOR)])),
            r"model\.bin has the entry 7, whose name",
        ),
        (
            "bin_training_checkpoint",
            bad.saved(BIN, lambda t: {"state_dict": t, "step": 10}),
            r"pytorch_model\.bin is a training checkpoint: its entry 'state_dict' is a dictionary",
        ),
        (
            "bin_sparse_tensor",
            bad.saved(BIN, lambda t: {**t, "a": TENSOR.to_sparse()}),
            r"pytorch_model\.bin: entry 'a' is a Tensor, not a plain tensor",
        ),
    ]
]


def renamed(old: str, new: str) -> bad.Build:
    """The golden `.pth`, with a part of its tensors' names replaced."""
    return bad.saved(PTH, lambda tensors: {name.replace(old, new): value for name, value in tensors.items()})


def other_rwkv(**att: torch.Tensor) -> bad.Build:
    """The golden `.pth` with another version's tensors in the time mixing of its blocks."""
    names = {f"blocks.0.att.{name.replace('__', '.')}": value for name, value in att.items()}
    return bad.saved(PTH, lambda t: {**{name: v for name, v in t.items() if ".att." not in name}, **names})


NORM, VECTOR, COLUMN = {"ln_x__weight": TENSOR[0]}, TENSOR[0], TENSOR[:, :1]
PTH_CASES = [
    BadCase("pth_cut_off", bad.file_bytes(PTH, lambda data: data[:-9]), rf"{PTH} is truncated", "rwkv7_pth"),
    BadCase("pth_two_in_the_folder", bad.two_pth_files, rf"several .pth files.*another\.pth, {PTH}", "rwkv7_pth"),
    *(
        unsupported(name, build, rf"{PTH}.*{message}", "rwkv7_pth")
        for name, build, message in [
            ("pth_rwkv5_0", other_rwkv(time_decay=VECTOR, **NORM), r"RWKV-5\.0 as \.pth file is not served"),
            (
                "pth_rwkv5_1",
                other_rwkv(time_decay=COLUMN, gate__weight=TENSOR, **NORM),
                r"RWKV-5\.1 as \.pth file is not served",
            ),
            (
                "pth_deep_embed",
                bad.saved(PTH, lambda t: {**t, "blocks.0.ffn.s_emb.weight": TENSOR}),
                r"RWKV-7a or RWKV-7b, with DeepEmbed \('ffn\.s_emb'\)",
            ),
            (
                "pth_time_state",
                bad.saved(PTH, lambda t: {"blocks.0.att.time_state": TENSOR}),
                "tuned initial state",
            ),
            (
                "pth_time_state_in_a_model",
                bad.saved(PTH, lambda t: {**t, "blocks.0.att.time_state": TENSOR}),
                r"initial state \('blocks\.0\.att\.time_state'\) beside the model; save",
            ),
            ("pth_of_another_model", renamed("blocks", "transformer"), "is no RWKV model"),
        ]
    ),
]

WEIGHT_CASES = [*SAFETENSORS_CASES, *TORCH_CASES, *PTH_CASES]
