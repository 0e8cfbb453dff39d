"""What the models of flash-linear-attention share: everything around the mixers.

A family is its mixer, the sizes of it and the state that it keeps; `FLAModel` is the rest. Any of them may have layers
that attend over a sliding window in place of the mixer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ostinato.kernels.packed import Packed
from ostinato.models.base import StateSpec, StateTensor, StateTensors
from ostinato.models.checkpoint import Checkpoint
from ostinato.models.config import ConfigReader
from ostinato.models.fla_mixers import (
    WINDOW_STATE,
    Mixer,
    Reading,
    WindowLayers,
    WindowMixer,
    mlp_size,
    read_attention,
    read_window_layers,
)
from ostinato.models.layers import Embedding, GatedMLP, RMSNorm, WeightReader
from ostinato.models.window import Rotary, advance


@dataclass(frozen=True, slots=True)
class Shell:
    """Sizes in elements of what surrounds the mixers, and the layers that have attention over a window instead."""

    layers: int
    hidden: int
    mlp: int
    vocab_size: int
    norm_eps: float
    tied: bool
    window: WindowLayers | None

    @property
    def mixers(self) -> int:
        """Layers that have the family's own mixer."""
        return self.layers - len(self.window.layers if self.window else ())


def read_shell(checkpoint: Checkpoint, *, layers: int = 24, hidden_ratio: float = 4) -> Shell:
    """The options that every fla config has. `layers`, `hidden_ratio`: what the family takes where they are absent.

    Raises CheckpointError, UnsupportedModelError: as ConfigReader.
    """
    config = ConfigReader(checkpoint.config, checkpoint.folder / "config.json")
    config.only("hidden_act", "swish", "silu")
    config.only("attnres_block_size", None)
    config.only("elementwise_affine", True)
    hidden, layers = config.integer("hidden_size", 2048), config.parts("num_hidden_layers", layers)
    return Shell(
        layers=layers,
        hidden=hidden,
        mlp=config.integer("intermediate_size")
        if config.has("intermediate_size")
        else mlp_size(config, hidden, hidden_ratio),
        vocab_size=config.integer("vocab_size", 32000),
        norm_eps=config.positive("norm_eps", 1e-6),
        tied=config.flag("tie_word_embeddings", False),
        window=read_window_layers(checkpoint, layers, hidden),
    )


@dataclass(frozen=True, slots=True)
class Block:
    """One layer: the mixer and the MLP, each behind a norm and with a residual connection.

    state, row: the names of the mixer's tensors, and where in them this layer's are.
    """

    mixer_norm: RMSNorm
    mixer: Mixer
    mlp_norm: RMSNorm
    mlp: GatedMLP
    state: tuple[str, ...]
    row: int

    def __call__(self, x: Tensor, reading: Reading, pool: StateTensors, dtype: torch.dtype) -> Tensor:
        """x: [T, hidden] fp32; dtype: of the norms' outputs. Returns [T, hidden] fp32."""
        state = {name: pool[name][self.row] for name in self.state}
        x = self.mixer(self.mixer_norm(x, dtype), reading, state, x)
        return self.mlp(self.mlp_norm(x, dtype), x)


@dataclass(frozen=True, slots=True)
class Family:
    """What makes a model of a shell. state: per layer, name -> shape and dtype; rotaries: those that mixers ask for.

    mixer: makes one of its name, such as `model.layers.3.attn`, and the layer's number.
    """

    name: str
    shell: Shell
    state: Mapping[str, tuple[tuple[int, ...], torch.dtype]]
    mixer: Callable[[str, int], Mixer]
    rotaries: tuple[Rotary, ...] = ()


class FLAModel:
    """See `ostinato.models.base.Model`. State: of the mixers, of attention and, where there is a rotary, `position`."""

    def __init__(self, architecture: str, family: Family, read: WeightReader) -> None:
        shell = family.shell
        self.family, self.architecture = family.name, architecture
        self.vocab_size, self.dtype = shell.vocab_size, read.dtype
        self._embedding = Embedding(read.matrix("model.embeddings.weight", shell.vocab_size, shell.hidden))
        self._blocks, self._rotaries = _read_blocks(family, read)
        self._norm = RMSNorm(read.tensor("model.norm.weight", shell.hidden), shell.norm_eps)
        self._head = read.head("lm_head.weight", shell.vocab_size, shell.hidden, self._embedding, shell.tied)
        self.state_spec = _state_spec(family, self._rotaries, read.dtype)
        self.weight_bytes = read.num_bytes
        self.matmul_params, self.head_params = read.matmul_params, read.head_params

    def forward(self, tokens: Tensor, batch: Packed, pool: StateTensors) -> Tensor:
        """See `Model.forward`."""
        reading = self._reading(batch, pool, tokens)
        x = self._embedding(tokens)
        for block in self._blocks:
            x = block(x, reading, pool, self.dtype)
        return self._norm(x, self.dtype)

    def _reading(self, batch: Packed, pool: StateTensors, tokens: Tensor) -> Reading:
        if not self._rotaries:
            return Reading(batch, tokens[:0], tokens[:0], {})
        places = advance(pool, batch, tokens.shape[0], None)
        turns = {rotary: rotary.at(places.positions) for rotary in self._rotaries}
        return Reading(batch, places.past, places.positions, turns)

    def logits(self, hidden: Tensor) -> Tensor:
        """See `Model.logits`."""
        return self._head(hidden)


def _read_blocks(family: Family, read: WeightReader) -> tuple[list[Block], tuple[Rotary, ...]]:
    """The layers, and the rotaries that they ask for."""
    shell, window, own = family.shell, family.shell.window, tuple(family.state)
    if window is None:
        return [_read_block(read, shell, i, family.mixer, own, i) for i in range(shell.layers)], family.rotaries
    rotary = Rotary(window.sizes.head, window.rope_base, read.device)

    def attention(name: str, _: int) -> WindowMixer:
        return WindowMixer(read_attention(read, name, window, shell.hidden), rotary)

    blocks = []
    for i in range(shell.layers):
        before = sum(layer < i for layer in window.layers)
        form = (attention, WINDOW_STATE, before) if i in window.layers else (family.mixer, own, i - before)
        blocks.append(_read_block(read, shell, i, *form))
    return blocks, (*family.rotaries, rotary)


def _read_block(
    read: WeightReader, shell: Shell, layer: int, mixer: Callable[[str, int], Mixer], state: tuple[str, ...], row: int
) -> Block:
    name, hidden = f"model.layers.{layer}", shell.hidden
    gate_up = [(f"{name}.mlp.{part}_proj.weight", shell.mlp) for part in ("gate", "up")]
    return Block(
        mixer_norm=RMSNorm(read.tensor(f"{name}.attn_norm.weight", hidden), shell.norm_eps),
        mixer=mixer(f"{name}.attn", layer),
        mlp_norm=RMSNorm(read.tensor(f"{name}.mlp_norm.weight", hidden), shell.norm_eps),
        mlp=GatedMLP(read.joined(gate_up, hidden), read.linear(f"{name}.mlp.down_proj.weight", hidden, shell.mlp)),
        state=state,
        row=row,
    )


def _state_spec(family: Family, rotaries: tuple[Rotary, ...], dtype: torch.dtype) -> StateSpec:
    window = family.shell.window
    own = [StateTensor(name, family.shell.mixers, *form) for name, form in family.state.items() if family.shell.mixers]
    ring = window.sizes.state(len(window.layers), dtype) if window else ()
    position = (StateTensor("position", 1, (), torch.int64),) if rotaries and not window else ()
    return StateSpec((*own, *ring, *position))
