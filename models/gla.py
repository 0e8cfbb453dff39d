"""Gated Linear Attention (Yang et al. 2023), in the flash-linear-attention layout."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ostinato.kernels import rows
from ostinato.kernels.linear import Linear
from ostinato.kernels.packed import Packed
from ostinato.kernels.recurrence import recurrence
from ostinato.models.base import StateSpec, StateTensor, StateTensors
from ostinato.models.checkpoint import Checkpoint
from ostinato.models.config import ConfigReader
from ostinato.models.fla import WindowLayers, mlp_size, read_attention, read_window_layers
from ostinato.models.layers import Embedding, GatedMLP, RMSNorm, WeightReader
from ostinato.models.window import Places, Rotary, WindowAttention, advance

GATE_RANK = 16  # fixed in the published layers, as is the next
GATE_NORMALIZER = 16


@dataclass(frozen=True, slots=True)
class GLAConfig:
    """Sizes in elements. `key`, `value`: per head; `kv_heads`: heads that share one key and value."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    key: int
    value: int
    mlp: int
    vocab_size: int
    norm_eps: float
    gate_minimum: float | None
    output_gate: bool
    tied: bool
    window: WindowLayers | None

    @property
    def attending(self) -> tuple[int, ...]:
        """The layers that attend over a sliding window instead."""
        return self.window.layers if self.window else ()

    def state(self, dtype: torch.dtype) -> StateSpec:
        """See `GLA`. dtype: of the computation."""
        recurrent = self.layers - len(self.attending)
        shape = (self.heads, self.value, self.key)
        tensors = (StateTensor("recurrent", recurrent, shape, torch.float32),) if recurrent else ()
        return StateSpec(tensors + (self.window.sizes.state(len(self.attending), dtype) if self.window else ()))


def read_config(checkpoint: Checkpoint) -> GLAConfig:
    """fla's GLAConfig. Options that change the mathematics and are not implemented are refused by name."""
    config = ConfigReader(checkpoint.config, checkpoint.folder / "config.json")
    config.only("hidden_act", "swish", "silu")
    for key, *served in (
        ("feature_map", None),
        ("use_short_conv", False),
        ("elementwise_affine", True),
        ("use_gv", False),
        ("gate_logit_normalizer", GATE_NORMALIZER),
        ("attnres_block_size", None),
    ):
        config.only(key, *served)
    hidden, heads = config.integer("hidden_size", 2048), config.integer("num_heads", 4)
    layers = config.integer("num_hidden_layers", 24)
    kv_heads = config.integer("num_kv_heads", heads)
    config.divide("num_kv_heads", heads, kv_heads)
    return GLAConfig(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        key=config.divide("num_heads", config.exact_fraction_of(hidden, "expand_k", 0.5), heads),
        value=config.divide("num_heads", config.exact_fraction_of(hidden, "expand_v", 1.0), heads),
        mlp=config.integer("intermediate_size") if config.has("intermediate_size") else mlp_size(config, hidden),
        vocab_size=config.integer("vocab_size", 32000),
        norm_eps=config.positive("norm_eps", 1e-6),
        gate_minimum=config.optional_number("clamp_min"),
        output_gate=config.flag("use_output_gate", True),
        tied=config.flag("tie_word_embeddings", False),
        window=read_window_layers(checkpoint, layers, hidden),
    )


@dataclass(frozen=True, slots=True)
class GLAMixer:
    """Section 4 of the paper. `inputs` joins q, k, v, the gate's first factor and, if there is one, the output gate."""

    config: GLAConfig
    inputs: Linear
    gate: Linear
    norm: RMSNorm
    output: Linear

    def __call__(self, u: Tensor, batch: Packed, state: Tensor, residual: Tensor) -> Tensor:
        """u: [T, hidden]; state: [slots, heads, value, key]; residual: [T, hidden] fp32.

        Returns residual and output together: [T, hidden] fp32.
        """
        c = self.config
        kv = (c.kv_heads * c.key, c.kv_heads * c.value)
        q, k, v, low, swish = self.inputs(u).split(
            [c.heads * c.key, *kv, GATE_RANK, c.heads * c.value * c.output_gate], dim=-1
        )
        o = recurrence(
            q.unflatten(-1, (c.heads, c.key)),
            k.unflatten(-1, (c.kv_heads, c.key)),
            v.unflatten(-1, (c.kv_heads, c.value)),
            state,
            batch,
            log_decay=self._log_decay(low).unflatten(-1, (c.kv_heads, c.key)),
            scale=c.key**-0.5,
        )
        o = self.norm(o, self.output.dtype, gate=swish if c.output_gate else None)
        return self.output(o.flatten(1), residual)

    def _log_decay(self, low: Tensor) -> Tensor:
        log_decay = rows.log_sigmoid(self.gate(low), 1 / GATE_NORMALIZER)
        return log_decay if self.config.gate_minimum is None else log_decay.clamp(min=self.config.gate_minimum)


def _read_mixer(read: WeightReader, name: str, c: GLAConfig) -> GLAMixer:
    inputs = [
        (f"{name}.q_proj.weight", c.heads * c.key),
        (f"{name}.k_proj.weight", c.kv_heads * c.key),
        (f"{name}.v_proj.weight", c.kv_heads * c.value),
        (f"{name}.gk_proj.0.weight", GATE_RANK),
    ]
    if c.output_gate:
        inputs.append((f"{name}.g_proj.weight", c.heads * c.value))
    # fla fuses the norm with the gate under a name of its own; the tensor is the same.
    fused = read.source.has(f"{name}.g_norm_swish_gate.weight")
    norm = f"{name}.g_norm_swish_gate.weight" if fused else f"{name}.g_norm.weight"
    return GLAMixer(
        config=c,
        inputs=read.joined(inputs, c.hidden),
        gate=read.linear(f"{name}.gk_proj.1.weight", c.kv_heads * c.key, GATE_RANK, bias=f"{name}.gk_proj.1.bias"),
        norm=RMSNorm(read.tensor(norm, c.value), c.norm_eps),
        output=read.linear(f"{name}.o_proj.weight", c.hidden, c.heads * c.value),
    )


@dataclass(frozen=True, slots=True)
class GLABlock:
    """One layer: the mixer and the MLP, each behind a norm and with a residual connection. index: among its kind."""

    index: int
    mixer_norm: RMSNorm
    mixer: GLAMixer | WindowAttention
    mlp_norm: RMSNorm
    mlp: GatedMLP

    def __call__(
        self, x: Tensor, batch: Packed, places: Places | None, pool: StateTensors, dtype: torch.dtype
    ) -> Tensor:
        """x: [T, hidden] fp32; places: for a layer that attends; pool: the model's; dtype: of the norms' outputs.

        Returns [T, hidden] fp32.
        """
        u, i = self.mixer_norm(x, dtype), self.index
        if isinstance(self.mixer, GLAMixer):
            x = self.mixer(u, batch, pool["recurrent"][i], x)
        else:
            assert places is not None
            x = self.mixer(u, batch, places, pool["window_keys"][i], pool["window_values"][i], x)
        return self.mlp(self.mlp_norm(x, dtype), x)


def _read_block(read: WeightReader, layer: int, c: GLAConfig) -> GLABlock:
    name, before = f"model.layers.{layer}", sum(other < layer for other in c.attending)
    attends = layer in c.attending
    gate_up = [(f"{name}.mlp.{part}_proj.weight", c.mlp) for part in ("gate", "up")]
    return GLABlock(
        index=before if attends else layer - before,
        mixer_norm=RMSNorm(read.tensor(f"{name}.attn_norm.weight", c.hidden), c.norm_eps),
        mixer=read_attention(read, f"{name}.attn", c.window, c.hidden)
        if c.window and attends
        else _read_mixer(read, f"{name}.attn", c),
        mlp_norm=RMSNorm(read.tensor(f"{name}.mlp_norm.weight", c.hidden), c.norm_eps),
        mlp=GatedMLP(read.joined(gate_up, c.hidden), read.linear(f"{name}.mlp.down_proj.weight", c.hidden, c.mlp)),
    )


class GLA:
    """See `ostinato.models.base.Model`. State per layer: `recurrent` [heads, value, key] fp32, or the ring of its
    window where it attends, and then `position`."""

    family = "GLA"

    def __init__(self, checkpoint: Checkpoint, config: GLAConfig, device: torch.device, dtype: torch.dtype) -> None:
        c, read = config, WeightReader(checkpoint, device, dtype)
        self.architecture = checkpoint.architecture
        self.vocab_size, self.dtype = c.vocab_size, dtype
        self.state_spec = c.state(dtype)
        self._rotary = Rotary(c.window.sizes.head, c.window.rope_base, device) if c.window else None
        self._embedding = Embedding(read.matrix("model.embeddings.weight", c.vocab_size, c.hidden))
        self._blocks = [_read_block(read, i, c) for i in range(c.layers)]
        self._norm = RMSNorm(read.tensor("model.norm.weight", c.hidden), c.norm_eps)
        self._head = read.head("lm_head.weight", c.vocab_size, c.hidden, self._embedding, c.tied)
        self.weight_bytes = read.num_bytes
        self.matmul_params, self.head_params = read.matmul_params, read.head_params

    def forward(self, tokens: Tensor, batch: Packed, pool: StateTensors) -> Tensor:
        """See `Model.forward`."""
        places = advance(pool, batch, tokens.shape[0], self._rotary) if self._rotary else None
        x = self._embedding(tokens)
        for block in self._blocks:
            x = block(x, batch, places, pool, self.dtype)
        return self._norm(x, self.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """See `Model.logits`."""
        return self._head(hidden)


def load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> GLA:
    """The layout of flash-linear-attention's GLAForCausalLM."""
    return GLA(checkpoint, read_config(checkpoint), device, dtype)
