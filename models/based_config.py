"""BASED's options. A published configuration is what its training code was built from: GPT-2's keys, and for each kind
of layer a class to instantiate (hydra's `_target_`) with its arguments.

The module paths in `_target_` changed with every reorganisation of that code, so a class is known by its own name.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ostinato.models.architecture import PREFIX_ATTENTION
from ostinato.models.checkpoint import Checkpoint
from ostinato.models.config import ConfigReader
from ostinato.models.errors import CheckpointError, UnsupportedModelError
from ostinato.models.window import WindowSizes

Kind = Literal["conv", "linear", "window"]
_KINDS: dict[str, Kind] = {
    "BaseConv": "conv",
    "LinearAttention": "linear",
    PREFIX_ATTENTION: "linear",
    "SlidingAttention": "window",
}
# Arguments that say nothing about the mathematics, or are read below. Any other is refused, unless it is off.
_LINEAR = frozenset({"feature_dim", "num_heads", "l_max", "eps"})
_ARGUMENTS = {
    "BaseConv": frozenset({"expand_proj", "kernel_size", "kernel_sizes", "use_bias", "l_max", "use_cuda"}),
    "LinearAttention": _LINEAR | {"feature_map", "head_dim", "parallel_implementation"},
    PREFIX_ATTENTION: _LINEAR
    | {"feature_name", "enc_length", "dec_length", "use_mask", "implementation", "num_key_value_heads"},
    "SlidingAttention": frozenset({"causal", "num_heads", "window_size", "use_flash_attn", "use_mask"}),
}


@dataclass(frozen=True, slots=True)
class ConvSizes:
    """In elements. inner: channels of the convolution; conv_bias: of the convolution; bias: of the projections."""

    inner: int
    width: int
    bias: bool
    conv_bias: bool


@dataclass(frozen=True, slots=True)
class LinearSizes:
    """In elements. width: of a head's queries and keys, before the feature map."""

    heads: int
    width: int
    value: int

    @property
    def features(self) -> int:
        """Of a query or key after the feature map."""
        return 1 + self.width + self.width**2

    @property
    def joined(self) -> tuple[int, int, int]:
        """Widths of queries, keys and values."""
        return self.heads * self.width, self.heads * self.width, self.heads * self.value


@dataclass(frozen=True, slots=True)
class BasedConfig:
    """kinds: of every layer; conv, linear, window: sizes of the layers of that kind, None where there are none.

    encoder_length: see StateSpec.
    """

    kinds: tuple[Kind, ...]
    conv: ConvSizes | None
    linear: LinearSizes | None
    window: WindowSizes | None
    hidden: int
    mlp: int
    rotary_width: int
    rotary_base: float
    vocab_size: int
    vocab_rows: int
    norm_eps: float
    encoder_length: int

    def layers(self, kind: Kind) -> int:
        """How many layers are of that kind."""
        return self.kinds.count(kind)


def read_config(checkpoint: Checkpoint) -> BasedConfig:
    """The configuration of the authors' published models.

    Raises CheckpointError, UnsupportedModelError: as ConfigReader; a layer is of another class, or full attention.
    """
    file = checkpoint.folder / "config.json"
    config = ConfigReader(checkpoint.config, file)
    _refuse_variants(config, file)
    hidden = config.integer("n_embd")
    kinds, sections = _layer_kinds(checkpoint.config, config.parts("n_layer"), file)
    window = _window_sizes(sections["window"], config, file) if "window" in sections else None
    multiple, vocab_size = config.integer("pad_vocab_size_multiple", 1), config.integer("vocab_size")
    return BasedConfig(
        kinds=kinds,
        conv=_conv_sizes(sections["conv"], hidden, file) if "conv" in sections else None,
        linear=_linear_sizes(sections["linear"], hidden, file) if "linear" in sections else None,
        window=window,
        hidden=hidden,
        mlp=config.integer("n_inner"),
        rotary_width=_rotary_width(config, window, file),
        rotary_base=config.positive("rotary_emb_base", 10000.0),
        vocab_size=vocab_size,
        vocab_rows=math.ceil(vocab_size / multiple) * multiple,
        norm_eps=config.positive("layer_norm_epsilon", 1e-5),
        encoder_length=_encoder_length(sections.get("linear", {}), config, file),
    )


def _refuse_variants(config: ConfigReader, file: Path) -> None:
    for key, served in (
        ("activation_function", "swiglu"),
        ("rms_norm", True),
        ("prenorm", True),
        ("parallel_block", False),
        ("mlp_type", "base"),
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("rotary_emb_interleaved", False),
        ("rotary_emb_scale_base", None),
    ):
        config.only(key, served)
    for key in ("qkv_proj_bias", "out_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias"):
        if config.flag(key, True):
            raise UnsupportedModelError(f"{file}: {key}, which is on by default, is not supported (only False)")


def _layer_kinds(
    config: Mapping[str, Any], layers: int, file: Path
) -> tuple[tuple[Kind, ...], dict[Kind, Mapping[str, Any]]]:
    """The kind of every layer, and the arguments of each kind."""
    chosen = ["mixer"] * layers
    for name in ("alt_mixer", "alt_mixer_2"):  # the second wins
        layers_of = config.get(f"{name}_layers") or []
        if not isinstance(layers_of, list):
            raise CheckpointError(f"{file}: {name}_layers must be a list of layers, found {layers_of!r}")
        for layer in layers_of:
            if not isinstance(layer, int) or not 0 <= layer < layers:
                raise CheckpointError(f"{file}: {name}_layers must be layers of {layers}, found {layer!r}")
            chosen[layer] = name
    kinds: dict[str, Kind] = {name: _kind(config, name, chosen.index(name), file) for name in dict.fromkeys(chosen)}
    sections: dict[Kind, Mapping[str, Any]] = {}
    for name, kind in kinds.items():
        if sections.setdefault(kind, config[name]) != config[name]:
            raise UnsupportedModelError(f"{file}: {name} is another {kind} layer with other arguments")
    return tuple(kinds[name] for name in chosen), sections


def _kind(config: Mapping[str, Any], name: str, layer: int, file: Path) -> Kind:
    section = config.get(name)
    if section is None:
        raise UnsupportedModelError(f"{file}: layer {layer} has full attention ({name} is null), which is not served")
    target = section.get("_target_") if isinstance(section, dict) else None
    if not isinstance(target, str):
        raise CheckpointError(f"{file}: {name} must be an object with a '_target_', found {section!r}")
    class_name = target.rpartition(".")[2]
    kind = _KINDS.get(class_name)
    if kind is None:
        raise UnsupportedModelError(f"{file}: {name} is a {target}, known are {', '.join(_KINDS)}")
    for key, value in section.items():
        if key not in _ARGUMENTS[class_name] | {"_target_"} and value not in (None, False):
            raise UnsupportedModelError(f"{file}: {name}.{key} = {value!r} is not supported")
    return kind


def _conv_sizes(section: Mapping[str, Any], hidden: int, file: Path) -> ConvSizes:
    """The width of the convolution is a number, or in older files a list of one."""
    widths = section.get("kernel_sizes", section.get("kernel_size"))
    width = widths[0] if isinstance(widths, list) and len(widths) == 1 else widths
    config = ConfigReader({**section, "kernel_sizes": width}, file)
    return ConvSizes(
        inner=config.integer("expand_proj", 2) * hidden // 2,
        width=config.integer("kernel_sizes", 3),
        bias=config.flag("use_bias", True),
        conv_bias=config.flag("use_cuda", False),
    )


def _linear_sizes(section: Mapping[str, Any], hidden: int, file: Path) -> LinearSizes:
    config = ConfigReader(section, file)
    heads, width = config.integer("num_heads", 16), config.integer("feature_dim", 16)
    if _is_prefix(section):
        config.only("feature_name", "taylor_exp")
    else:
        _check_feature_map(section, width, file)
    config.only("eps", 1e-12)
    return LinearSizes(heads, width, config.integer("head_dim", config.divide("num_heads", hidden, heads)))


def _check_feature_map(section: Mapping[str, Any], width: int, file: Path) -> None:
    features = section["feature_map"] if isinstance(section.get("feature_map"), dict) else {}
    target = str(features.get("_target_"))
    if target.rpartition(".")[2] != "TaylorExp" or features.get("input_dim") != width:
        raise UnsupportedModelError(
            f"{file}: feature_map = {features!r} is not supported (only a TaylorExp whose input_dim is feature_dim)"
        )


def _is_prefix(section: Mapping[str, Any]) -> bool:
    return str(section.get("_target_")).rpartition(".")[2] == PREFIX_ATTENTION


def _encoder_length(section: Mapping[str, Any], whole: ConfigReader, file: Path) -> int:
    """Of prefix linear attention; its model's own `enc_length`, which prompts are padded to, must be the same."""
    if not _is_prefix(section):
        return 0
    config = ConfigReader(section, file)
    config.only("use_mask", True)
    length = config.integer("enc_length")
    whole.only("enc_length", length)
    return length


def _rotary_width(config: ConfigReader, window: WindowSizes | None, file: Path) -> int:
    head = window.head if window else 0
    width = int(config.number("rotary_emb_fraction", 0.0) * head)
    if width % 2:
        raise UnsupportedModelError(
            f"{file}: rotary_emb_fraction turns {width} of a head's {head} elements: they turn in pairs"
        )
    return width


def _window_sizes(section: Mapping[str, Any], whole: ConfigReader, file: Path) -> WindowSizes:
    """The number of heads is the model's, whatever the layer's own says; half the window lies behind a token."""
    heads = whole.integer("n_head")
    kv_heads = whole.integer("n_head_kv", heads)
    whole.divide("n_head_kv", heads, kv_heads)
    window = ConfigReader(section, file).integer("window_size", 128)
    return WindowSizes(heads, kv_heads, whole.divide("n_head", whole.integer("n_embd"), heads), window // 2 + 1)
