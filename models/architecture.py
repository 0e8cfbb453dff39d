"""Which architecture a checkpoint is, decided by what is on disk, never by its name.

Some layouts have no `architectures` entry, and get a name of their own here: `mamba_ssm` and `mamba2_ssm`
(folders of the original state-spaces code), `rwkv7_pth` and its kin (RWKV's original single file).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ostinato.models.errors import CheckpointError, UnsupportedModelError

_STATE_SPACES_KEYS = frozenset({"d_model", "n_layer", "ssm_cfg"})
_BASED_KEYS = frozenset({"n_embd", "n_layer", "mixer"})
PREFIX_ATTENTION = "PrefixLinearAttention"  # the class that makes a model in BASED's form JRT-RNN
_DESCRIPTIONS = {
    "based": "BASED in its authors' layout",
    "jrt": "JRT-RNN in its authors' layout",
    "mamba_ssm": "Mamba in the original state-spaces layout",
    "mamba2_ssm": "Mamba-2 in the original state-spaces layout",
}
# Early conversions of RWKV-5 call their class as RWKV-4's is called.
_BY_MODEL_TYPE = {("RwkvForCausalLM", "rwkv5"): "Rwkv5ForCausalLM", ("RwkvForCausalLM", "rwkv6"): "Rwkv6ForCausalLM"}
_LOOK_ALIKES = {
    "Rwkv7ForCausalLM": (
        "RWKV-7 in a layout that is not read; "
        "use the same model as RWKV7ForCausalLM (the fla layout, mind the capitals) or as RWKV's .pth file"
    ),
}
# Refused unless the registry has them. What their attention layers remember grows with the text.
_HYBRIDS = {
    "BambaForCausalLM": "Bamba",
    "FalconH1ForCausalLM": "Falcon-H1",
    "GraniteMoeHybridForCausalLM": "Granite 4",
    "JambaForCausalLM": "Jamba",
    "KimiLinearForCausalLM": "Kimi Linear",
    "Lfm2ForCausalLM": "LFM2",
    "Lfm2MoeForCausalLM": "LFM2",
    "MiniMaxForCausalLM": "MiniMax",
    "MiniMaxText01ForCausalLM": "MiniMax",
    "NemotronHForCausalLM": "Nemotron-H",
    "OlmoHybridForCausalLM": "OLMo Hybrid",
    "Qwen3NextForCausalLM": "Qwen3-Next",
    "Qwen3_5ForCausalLM": "Qwen3.5",
    "Qwen3_5ForConditionalGeneration": "Qwen3.5",
    "Qwen3_5MoeForCausalLM": "Qwen3.5",
    "Qwen3_5MoeForConditionalGeneration": "Qwen3.5",
    "Zamba2ForCausalLM": "Zamba2",
    "ZambaForCausalLM": "Zamba",
}
_SLSTM_KEYS = ("slstm_at", "slstm_block", "_xlstm_config")  # of the xlstm package, before xLSTM-7b


def describe_architecture(name: str) -> str:
    """The name as it is shown to users: the `architectures` entry, or words for a layout that has none."""
    if name.startswith("rwkv") and name.endswith("_pth"):
        return f"RWKV-{name.removeprefix('rwkv').removesuffix('_pth')} as .pth file"
    return _DESCRIPTIONS.get(name, name)


def detect_folder(config: Mapping[str, Any], config_file: Path) -> str:
    """The architecture that a `config.json` declares.

    Raises:
        CheckpointError: it declares none.
        UnsupportedModelError: a variant that looks like a served one and is not (quantized, another layout).
    """
    slstm = [key for key in _SLSTM_KEYS if config.get(key)]
    if slstm:
        raise UnsupportedModelError(
            f"{config_file}: this is an xLSTM with sLSTM layers, or in a layout for them ({slstm[0]}), which is not "
            "served; of xLSTM only the layout of xLSTM-7b is, whose layers are all mLSTM"
        )
    name = _declared_name(config, config_file)
    if name in _LOOK_ALIKES:
        raise UnsupportedModelError(f"{config_file}: {name} is {_LOOK_ALIKES[name]}")
    for key in ("quantization_config", "compression_config"):
        if config.get(key):
            raise UnsupportedModelError(
                f"{config_file}: the weights are quantized ({key}: {_quantization_method(config[key])}); "
                "use the repository with the unquantized weights"
            )
    return name


def detect_pth(shapes: Mapping[str, tuple[int, ...]], file: Path) -> str:
    """The RWKV version of an original `.pth` file, by its tensor names (the test of the `rwkv` package).

    Returns:
        `rwkv<version>_pth`, version being 4, 5.0, 5.1, 5.2, 6 or 7.

    Raises:
        UnsupportedModelError: no RWKV model, one with a tuned state among its tensors, or RWKV-7 with DeepEmbed.
    """
    tuned = [name for name in shapes if name.endswith(".time_state")]
    if len(tuned) == len(shapes):
        raise UnsupportedModelError(f"{file} holds a tuned initial state of RWKV, not a model")
    if tuned:
        raise UnsupportedModelError(
            f"{file} holds a tuned initial state ({tuned[0]!r}) beside the model; save the two to files of their own"
        )
    first_block = {
        name.removeprefix("blocks.0."): shape for name, shape in shapes.items() if name.startswith("blocks.0.")
    }
    if "emb.weight" not in shapes or not any(name.startswith("att.") for name in first_block):
        raise UnsupportedModelError(
            f"{file} is no RWKV model (no 'emb.weight' or no 'blocks.0.att.*'); no other .pth files are read"
        )
    if any(name.startswith("ffn.s_emb") for name in first_block):
        raise UnsupportedModelError(
            f"{file} is RWKV-7a or RWKV-7b, with DeepEmbed ('ffn.s_emb'), which is not served; use a plain RWKV-7"
        )
    return f"rwkv{_rwkv_version(first_block)}_pth"


def require_supported(name: str, config: Mapping[str, Any], origin: Path, supported: Collection[str]) -> None:
    """Refuses an architecture that is not in `supported`, naming those that are.

    Raises:
        UnsupportedModelError: says also when the repository wants its own code to be run (`auto_map`), and of hybrids
            with full attention that they are.
    """
    if name in supported:
        return
    known = ", ".join(sorted((describe_architecture(each) for each in supported), key=str.lower))
    remote_code = " Its own Python code (auto_map) is never run." if config.get("auto_map") else ""
    if name in _HYBRIDS:
        raise UnsupportedModelError(
            f"{origin}: {name} is {_HYBRIDS[name]}, some of whose layers are full attention: what they remember grows "
            f"with the text, so no state of fixed size holds it. It is not served.{remote_code}"
        )
    raise UnsupportedModelError(
        f"{origin}: {describe_architecture(name)} is not served.{remote_code} Served are: {known}"
    )


def _declared_name(config: Mapping[str, Any], config_file: Path) -> str:
    declared = config.get("architectures")
    if declared:
        if not isinstance(declared, list) or not isinstance(declared[0], str):
            raise CheckpointError(f"{config_file}: 'architectures' must be a list of names, found {declared!r}")
        return _BY_MODEL_TYPE.get((declared[0], str(config.get("model_type"))), declared[0])
    if config.keys() >= _STATE_SPACES_KEYS:
        ssm_config = config["ssm_cfg"]
        if not isinstance(ssm_config, dict):
            raise CheckpointError(f"{config_file}: 'ssm_cfg' must be an object, found {ssm_config!r}")
        layer = ssm_config.get("layer", "Mamba1")
        if layer not in ("Mamba1", "Mamba2"):
            raise UnsupportedModelError(f"{config_file}: ssm_cfg.layer is {layer!r}, known are 'Mamba1' and 'Mamba2'")
        if attention := config.get("attn_layer_idx"):
            raise UnsupportedModelError(
                f"{config_file}: attn_layer_idx = {attention!r}: these layers are full attention in this layout, which "
                "has no windows: what they remember grows with the text, so no state of fixed size holds it"
            )
        return "mamba_ssm" if layer == "Mamba1" else "mamba2_ssm"
    if _is_hydra(config):
        return "jrt" if any(name == PREFIX_ATTENTION for name in _classes(config)) else "based"
    model_type = config.get("model_type")
    hint = f" (model_type {model_type!r} alone does not decide it)" if model_type else ""
    if config.get("auto_map"):
        hint += "; its own Python code (auto_map) is never run"
    raise CheckpointError(f"{config_file} names no architecture: 'architectures' is missing or empty{hint}")


def _is_hydra(config: Mapping[str, Any]) -> bool:
    """BASED's form, which its kin share: layers by the name of the class to instantiate."""
    return config.keys() >= _BASED_KEYS and isinstance(config["mixer"], dict) and "_target_" in config["mixer"]


def _classes(config: Mapping[str, Any]) -> list[str]:
    """Of the layers in BASED's form, without the modules that they are in."""
    sections = [config.get(name) for name in ("mixer", "alt_mixer", "alt_mixer_2")]
    return [str(each.get("_target_")).rpartition(".")[2] for each in sections if isinstance(each, dict)]


def _quantization_method(quantization: object) -> str:
    if not isinstance(quantization, dict):
        return repr(quantization)
    return str(quantization.get("quant_method", "method not named"))


def _rwkv_version(first_block: Mapping[str, tuple[int, ...]]) -> str:
    if "att.r_k" in first_block:
        return "7"
    if any(name.startswith("att.time_maa") for name in first_block):
        return "6"
    if "att.ln_x.weight" not in first_block:
        return "4"
    decay = first_block.get("att.time_decay", ())
    if len(decay) > 1 and decay[1] > 1:
        return "5.2"
    return "5.1" if "att.gate.weight" in first_block else "5.0"
