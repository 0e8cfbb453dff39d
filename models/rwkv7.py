"""RWKV-7 "Goose" (Peng et al. 2025), in the flash-linear-attention layout; `rwkv7_pth.py` reads the original one."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ostinato.kernels import rows
from ostinato.kernels.linear import Linear
from ostinato.kernels.packed import token_shift
from ostinato.kernels.recurrence import recurrence
from ostinato.models.base import Packed, StateSpec, StateTensor, StateTensors
from ostinato.models.checkpoint import Checkpoint
from ostinato.models.layers import Embedding, LayerNorm, LowRank, WeightReader
from ostinato.models.rwkv7_config import RWKV7Config, read_config

DECAY_SCALE = math.exp(-0.5)  # the paper's bound on how fast a channel may forget (section 4)


@dataclass(frozen=True, slots=True)
class TimeMix:
    """Section 4 of the paper, time mixing.

    mix: [6, C] for r, w, k, v, a, g; key_norm, key_gate: [C]; bonus: [H, head].
    """

    config: RWKV7Config
    mix: Tensor
    receptance: Linear
    key: Linear
    value: Linear
    decay: LowRank
    rate: LowRank
    first_value: LowRank | None  # none in layer 0, whose values are the ones mixed in
    gate: LowRank
    key_norm: Tensor
    key_gate: Tensor
    bonus: Tensor
    norm: LayerNorm
    output: Linear

    def __call__(
        self, x: Tensor, batch: Packed, shift: Tensor, state: Tensor, v_first: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """x: [T, C] in the model's dtype; shift: [slots, C]; state: [slots, H, head, head]; v_first: [T, C] fp32.

        Returns the output [T, C] fp32 and the first layer's values.
        """
        xr, xw, xk, xv, xa, xg = _mixed(x, shift, batch, self.mix)
        r, k, v = self.receptance(xr), self.key(xk), self.value(xv)
        if self.first_value is None or v_first is None:
            v_first = v
        else:
            v = v + (v_first - v) * rows.sigmoid(self.first_value(xv))
        decay = rows.exp(rows.sigmoid(self.decay(xw, rows.tanh)) * -DECAY_SCALE)
        rate = rows.sigmoid(self.rate(xa))
        removal = self._unit_heads(k * self.key_norm)
        k = k * (1 + (rate - 1) * self.key_gate)
        r, k, v = self._heads(r), self._heads(k), self._heads(v)
        y = recurrence(
            r,
            k,
            v,
            state,
            batch.slots,
            batch.starts,
            decay=self._heads(decay),
            a=-removal,
            b=removal * self._heads(rate),
        )
        y = self.norm(y, torch.float32) + rows.row_dot(r * self.bonus, k) * v
        return self.output(y.view(x.shape) * self.gate(xg, rows.sigmoid)), v_first

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(-1, self.config.heads, self.config.head)

    def _unit_heads(self, x: Tensor) -> Tensor:
        x = self._heads(x)
        return x / rows.row_norm(x).clamp(min=1e-12)


@dataclass(frozen=True, slots=True)
class ChannelMix:
    """Section 4 of the paper, channel mixing: value(relu(key(mixed x))^2). mix: [1, C]."""

    mix: Tensor
    key: Linear
    value: Linear

    def __call__(self, x: Tensor, batch: Packed, shift: Tensor) -> Tensor:
        """x: [T, C] in the model's dtype; shift: [slots, C]. Returns [T, C] fp32."""
        (xk,) = _mixed(x, shift, batch, self.mix)
        return self.value(self.key(xk).relu().square())


def _mixed(x: Tensor, shift: Tensor, batch: Packed, mix: Tensor) -> Tensor:
    """Moves x towards the previous token's, once per row of mix: [T, C], [n, C] -> [n, T, C] fp32."""
    previous = token_shift(x, shift, batch.slots, batch.starts)
    x = x.float()
    return x + (previous.float() - x) * mix.unsqueeze(1)


@dataclass(frozen=True, slots=True)
class RWKV7Block:
    """One layer. The norms give the model's dtype; `RWKV7.forward` adds the residual connections."""

    time_norm: LayerNorm
    time: TimeMix
    channel_norm: LayerNorm
    channel: ChannelMix


class RWKV7:
    """See `ostinato.models.base.Model`. State per layer: `wkv` [heads, value, key] fp32 and two token-shift vectors."""

    family = "RWKV-7"

    def __init__(self, read: WeightReader, config: RWKV7Config, architecture: str) -> None:
        c = config
        self.architecture = architecture
        self.vocab_size, self.dtype = c.vocab_size, read.dtype
        self.state_spec = StateSpec(
            (
                StateTensor("wkv", c.layers, (c.heads, c.head, c.head), torch.float32),
                StateTensor("time_shift", c.layers, (c.hidden,), read.dtype),
                StateTensor("channel_shift", c.layers, (c.hidden,), read.dtype),
            )
        )
        self._embedding = Embedding(read.matrix("model.embeddings.weight", c.vocab_size, c.hidden))
        self._embedding_norm = _read_norm(read, "model.layers.0.pre_norm", c.hidden, c.norm_eps)
        self._blocks = [_read_block(read, i, c) for i in range(c.layers)]
        self._norm = _read_norm(read, "model.norm", c.hidden, c.norm_eps)
        self._head = read.head("lm_head.weight", c.vocab_size, c.hidden, self._embedding, c.tied)
        self.weight_bytes = read.num_bytes

    def forward(self, tokens: Tensor, batch: Packed, pool: StateTensors) -> Tensor:
        """See `Model.forward`."""
        x = self._embedding_norm(self._embedding(tokens), torch.float32)
        v_first: Tensor | None = None
        for i, block in enumerate(self._blocks):
            mixed, v_first = block.time(
                block.time_norm(x, self.dtype), batch, pool["time_shift"][i], pool["wkv"][i], v_first
            )
            x = x + mixed
            x = x + block.channel(block.channel_norm(x, self.dtype), batch, pool["channel_shift"][i])
        return self._norm(x, self.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """See `Model.logits`."""
        return self._head(hidden)


def _read_norm(read: WeightReader, name: str, size: int, eps: float) -> LayerNorm:
    return LayerNorm(read.tensor(f"{name}.weight", size), read.tensor(f"{name}.bias", size), eps)


def _read_low_rank(read: WeightReader, name: str, hidden: int, *, bias: bool = True) -> LowRank:
    rank = read.source.shape(f"{name}.lora.0.weight", 2)[0]
    down, up = (
        read.linear(f"{name}.lora.0.weight", rank, hidden),
        read.matrix(f"{name}.lora.2.weight", hidden, rank),
    )
    return LowRank(down, Linear(up, read.vector(f"{name}.lora.2.bias", hidden) if bias else None))


def _read_time_mix(read: WeightReader, name: str, layer: int, c: RWKV7Config) -> TimeMix:
    norm_shape = (c.heads, c.head)
    return TimeMix(
        config=c,
        mix=torch.stack([read.vector(f"{name}.x_{part}", c.hidden) for part in "rwkvag"]),
        receptance=read.linear(f"{name}.r_proj.weight", c.hidden, c.hidden),
        key=read.linear(f"{name}.k_proj.weight", c.hidden, c.hidden),
        value=read.linear(f"{name}.v_proj.weight", c.hidden, c.hidden),
        decay=_read_low_rank(read, f"{name}.w_lora", c.hidden),
        rate=_read_low_rank(read, f"{name}.a_lora", c.hidden),
        first_value=_read_low_rank(read, f"{name}.v_lora", c.hidden) if layer else None,
        gate=_read_low_rank(read, f"{name}.g_lora", c.hidden, bias=False),
        key_norm=read.vector(f"{name}.k_k", c.hidden),
        key_gate=read.vector(f"{name}.k_a", c.hidden),
        bonus=read.tensor(f"{name}.r_k", c.heads, c.head),
        norm=LayerNorm(
            read.tensor(f"{name}.g_norm.weight", c.hidden).view(norm_shape),
            read.tensor(f"{name}.g_norm.bias", c.hidden).view(norm_shape),
            c.head_norm_eps,
        ),
        output=read.linear(f"{name}.o_proj.weight", c.hidden, c.hidden),
    )


def _read_block(read: WeightReader, layer: int, c: RWKV7Config) -> RWKV7Block:
    name = f"model.layers.{layer}"
    return RWKV7Block(
        time_norm=_read_norm(read, f"{name}.attn_norm", c.hidden, c.norm_eps),
        time=_read_time_mix(read, f"{name}.attn", layer, c),
        channel_norm=_read_norm(read, f"{name}.ffn_norm", c.hidden, c.norm_eps),
        channel=ChannelMix(
            mix=read.vector(f"{name}.ffn.x_k", c.hidden).unsqueeze(0),
            key=read.linear(f"{name}.ffn.key.weight", c.ffn, c.hidden),
            value=read.linear(f"{name}.ffn.value.weight", c.hidden, c.ffn),
        ),
    )


def load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> RWKV7:
    """The layout of flash-linear-attention's RWKV7ForCausalLM."""
    return RWKV7(WeightReader(checkpoint, device, dtype), read_config(checkpoint), checkpoint.architecture)
