"""Bad configurations, folders and paths: how each is made, and the error that opening it must give."""

from __future__ import annotations

from dataclasses import dataclass

from ostinato.models.errors import CheckpointError, UnsupportedModelError
from tests.models import bad_files as bad

PTH = "rwkv7-g1-tiny-ctx4096.pth"
BIN = "pytorch_model.bin"
SAFETENSORS = "model.safetensors"
EMBEDDING = "backbone.embeddings.weight"


@dataclass(frozen=True, slots=True)
class BadCase:
    """`build` spoils a copy of the golden folder; the error is a `kind` that matches `message`."""

    name: str
    build: bad.Build
    message: str
    golden: str = "mamba_hf"
    kind: type[CheckpointError] = CheckpointError


def unsupported(name: str, build: bad.Build, message: str, golden: str = "mamba_hf") -> BadCase:
    return BadCase(name, build, message, golden, UnsupportedModelError)


STATE_SPACES_FAULT = r"config\.json.*ssm_cfg"
CONFIG_CASES = [
    BadCase("config_missing", bad.removed("config.json"), r"config\.json is missing"),
    BadCase("config_empty", bad.config_text(""), r"config\.json is not valid JSON: .* line 1 column 1"),
    BadCase(
        "config_trailing_comma",
        bad.config_text('{\n "a": 1,\n}'),
        r"config\.json is not valid JSON.* line [23]",
    ),
    BadCase("config_cut_off", bad.config_text('{\n "a": [1, 2'), r"config\.json is not valid JSON.* line 2 column"),
    BadCase("config_not_an_object", bad.config_text("[1]"), r"config\.json must hold a JSON object, found a list"),
    BadCase("config_not_utf8", bad.config_text(b'{"a": "\xff"}'), r"config\.json is not UTF-8 text: byte 7"),
    BadCase("config_nested_too_deeply", bad.config_text("[" * 200_000), r"config\.json is nested too deeply"),
    BadCase(
        "config_integer_of_5000_digits",
        bad.config_text('{"a": ' + "9" * 5000 + "}"),
        r"config\.json cannot be read: .*5000 digits$",
    ),
    BadCase("config_is_a_folder", bad.config_is_folder, r"config\.json cannot be read: Is a directory"),
    BadCase("no_architecture", bad.config(architectures=None, ssm_cfg=None), r"config\.json names no architecture"),
    BadCase(
        "empty_architectures",
        bad.config(architectures=[], d_model=None),
        r"config\.json names no architecture",
    ),
    BadCase(
        "architectures_a_string",
        bad.config(architectures="MambaForCausalLM"),
        r"config\.json: 'architectures'",
    ),
    BadCase("architectures_of_numbers", bad.config(architectures=[1]), r"config\.json: 'architectures'"),
    BadCase("ssm_cfg_not_an_object", bad.config(ssm_cfg=[]), STATE_SPACES_FAULT, "mamba_orig"),
    unsupported("ssm_layer_unknown", bad.config(ssm_cfg={"layer": "Mamba9"}), STATE_SPACES_FAULT, "mamba_orig"),
    unsupported(
        "unknown_architecture",
        bad.config(architectures=["NobodysForCausalLM"]),
        r"config\.json: NobodysForCausalLM is not served\. Served are: .*GLAForCausalLM.*RWKV-7 as",
    ),
    unsupported(
        "remote_code_only",
        bad.config(architectures=["NobodysForCausalLM"], auto_map={"AutoModelForCausalLM": "nobody.Model"}),
        r"config\.json: NobodysForCausalLM is not served\. Its own Python code \(auto_map\) is never run",
    ),
    unsupported(
        "four_bit_weights",
        bad.config(quantization_config={"load_in_4bit": True, "quant_method": "bitsandbytes"}),
        r"config\.json: the weights are quantized \(quantization_config: bitsandbytes\)",
    ),
    unsupported(
        "full_attention_hybrid",
        bad.config(architectures=["JambaForCausalLM"]),
        r"config\.json: JambaForCausalLM is Jamba, some of whose layers are full attention: .* It is not served\.$",
    ),
    unsupported(
        "full_attention_hybrid_with_code",
        bad.config(architectures=["KimiLinearForCausalLM"], auto_map={"AutoModelForCausalLM": "kimi.Model"}),
        r"KimiLinearForCausalLM is Kimi Linear, .* not served\. Its own Python code \(auto_map\) is never run\.$",
    ),
    BadCase(
        "remote_code_without_architecture",
        bad.config(architectures=None, ssm_cfg=None, auto_map={"AutoModelForCausalLM": "nobody.Model"}),
        r"config\.json names no architecture: .*; its own Python code \(auto_map\) is never run",
    ),
    unsupported(
        "slstm",
        bad.config(slstm_at=[1], num_blocks=7),
        r"config\.json: this is an xLSTM with sLSTM layers, .*\(slstm_at\).* only the layout of xLSTM-7b",
    ),
    unsupported(
        "slstm_of_the_xlstm_package",
        bad.config(architectures=["xLSTMForCausalLM"], _xlstm_config={"slstm_block": {}}),
        r"config\.json: this is an xLSTM with sLSTM layers, .*\(_xlstm_config\)",
    ),
    unsupported("compressed_weights", bad.config(compression_config={"a": 1}), r"config\.json: .* quantized"),
    unsupported(
        "rwkv7_in_another_layout",
        bad.config(architectures=["Rwkv7ForCausalLM"]),
        r"config\.json: Rwkv7ForCausalLM is RWKV-7 in a layout .* use the same model as RWKV7ForCausalLM",
    ),
    BadCase(
        "generation_config_cut_off",
        bad.text_file("generation_config.json", '{"eos_token_id": '),
        r"generation_config\.json is not valid JSON: .* line 1 column",
    ),
]

INDEX_FAULT = r"model\.safetensors\.index\.json"
LAYOUT_CASES = [
    BadCase("no_weights", bad.removed(SAFETENSORS), r"mamba_hf holds no weights: expected model\.safetensors or"),
    BadCase("weights_under_another_name", bad.weights_elsewhere, r"holds no weights.*found consolidated\.saf"),
    BadCase("weights_link_dangles", bad.weights_link_dangles, r"mamba_hf/model\.safetensors is missing"),
    BadCase("file_and_index", bad.index_and_single, rf"both model\.safetensors and {INDEX_FAULT}"),
    BadCase("shards_without_index", bad.shards_without_index, rf"{bad.SHARDS[0]}, but .* {INDEX_FAULT} is missing"),
    BadCase(
        "index_wrong_json",
        lambda folder: bad.text_file(bad.INDEX, "{")(bad.shards_without_index(folder)),
        rf"{INDEX_FAULT} is not valid JSON: .* line 1 column 2",
    ),
    BadCase(
        "index_without_weight_map",
        lambda folder: bad.text_file(bad.INDEX, "{}")(bad.shards_without_index(folder)),
        rf"{INDEX_FAULT}: 'weight_map' must be an object",
    ),
    BadCase(
        "index_leaves_the_folder",
        bad.sharded(lambda folder, weight_map: weight_map.update(a="../mamba_hf/model.safetensors")),
        rf"{INDEX_FAULT}: tensor 'a' must lie in a file of the same folder",
    ),
    BadCase(
        "shard_missing",
        bad.sharded(lambda folder, weight_map: (folder / bad.SHARDS[1]).unlink()),
        rf"{bad.SHARDS[1]} is missing, but {INDEX_FAULT} names it",
    ),
    BadCase(
        "shard_name_too_long",
        bad.sharded(lambda folder, weight_map: weight_map.update({EMBEDDING: "a" * 5000})),
        rf"/a{{5000}} is missing, but {INDEX_FAULT} names it",
    ),
    BadCase(
        "shard_not_in_index",
        bad.sharded(lambda folder, weight_map: (folder / "model-00003-of-00003.safetensors").touch()),
        rf"model-00003-of-00003\.safetensors is a shard that {INDEX_FAULT} does not name",
    ),
    BadCase(
        "tensor_not_in_its_shard",
        bad.sharded(lambda folder, weight_map: weight_map.update({EMBEDDING: bad.SHARDS[1]})),
        rf"{bad.SHARDS[1]} lacks tensor '{EMBEDDING}', which .*{INDEX_FAULT} says it holds",
    ),
    BadCase(
        "tensor_nowhere",
        bad.sharded(lambda folder, weight_map: weight_map.update({"a.b": bad.SHARDS[0]})),
        rf"{bad.SHARDS[0]} lacks tensor 'a\.b'",
    ),
    BadCase(
        "tensor_not_in_index",
        bad.sharded(lambda folder, weight_map: weight_map.pop(EMBEDDING)),
        rf"{bad.SHARDS[0]} holds tensor '{EMBEDDING}', which .*{INDEX_FAULT} does not list",
    ),
    BadCase(
        "tensor_in_two_shards",
        bad.sharded(bad.duplicate_tensor),
        rf"tensor '{EMBEDDING}' is in both .*{bad.SHARDS[0]} and .*{bad.SHARDS[1]}",
    ),
]

PATH_CASES = [
    BadCase("path_empty", lambda folder: "", "the model is an empty string"),
    BadCase("path_nowhere", lambda folder: str(folder / "none"), r"no such file or folder \(.*mamba_hf/none\)"),
    BadCase("path_a_word", lambda folder: "mamba", r"'mamba': there is no such file.*not a hub id"),
    BadCase("path_too_long", lambda folder: "a" * 5000, r"there is no such file or folder"),
    BadCase("path_null_byte", lambda folder: "a\0b", r"there is no such file or folder"),
    BadCase("path_pth_nowhere", lambda folder: "some/model.pth", r"no such file or folder \(.*some/model\.pth\)"),
    BadCase(
        "path_weight_file",
        bad.only_file(SAFETENSORS),
        r"model\.safetensors is no \.pth file.*give the folder",
    ),
]

FOLDER_CASES = [*CONFIG_CASES, *LAYOUT_CASES, *PATH_CASES]
