"""RWKV-7 "Goose" (Peng et al. 2025), in the flash-linear-attention layout; `rwkv7_pth.py` reads the original one."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ostinato.kernels import rows
from ostinato.kernels.linear import Linear
from ostinato.kernels.packed import Packed
from ostinato.kernels.recurrence import recurrence
from ostinato.kernels.rwkv7 import rwkv7_inputs, rwkv7_output
from ostinato.kernels.shift import token_shift
from ostinato.models.base import StateSpec, StateTensor, StateTensors
from ostinato.models.checkpoint import Checkpoint
from ostinato.models.layers import Embedding, LayerNorm, LowRank, WeightReader
from ostinato.models.rwkv7_config import RWKV7Config, read_config


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
        self, x: Tensor, batch: Packed, shift: Tensor, state: Tensor, v_first: Tensor | None, residual: Tensor
    ) -> tuple[Tensor, Tensor]:
        """x: [T, C] in the model's dtype; shift: [slots, C]; state: [slots, H, head, head]; v_first, residual: [T, C]
        fp32.

        Returns residual and output together, [T, C] fp32, and the first layer's values.
        """
        c = self.config
        xr, xw, xk, xv, xa, xg = token_shift(x, self.mix, shift, batch)
        r, v = self.receptance(xr), self.value(xv)
        log_decay, k, a, b, v_mixed = rwkv7_inputs(
            self.key(xk),
            v,
            self.decay(xw, rows.tanh),
            self.rate(xa),
            None if self.first_value is None else v_first,
            None if self.first_value is None else self.first_value(xv),
            self.key_norm,
            self.key_gate,
            c.heads,
        )
        y = recurrence(
            self._heads(r),
            self._heads(k),
            self._heads(v_mixed),
            state,
            batch,
            log_decay=self._heads(log_decay),
            a=self._heads(a),
            b=self._heads(b),
        )
        gate = self.gate(xg, rows.sigmoid)
        norm = self.norm
        y = rwkv7_output(y, r, k, v_mixed, gate, self.bonus, norm.weight, norm.bias, norm.eps, self.output.dtype)
        return self.output(y, residual), v if v_first is None else v_first

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(-1, self.config.heads, self.config.head)


@dataclass(frozen=True, slots=True)
class ChannelMix:
    """Section 4 of the paper, channel mixing: value(relu(key(mixed x))^2). mix: [1, C]."""

    mix: Tensor
    key: Linear
    value: Linear

    def __call__(self, x: Tensor, batch: Packed, shift: Tensor, residual: Tensor) -> Tensor:
        """x: [T, C] in the model's dtype; shift: [slots, C]; residual: [T, C] fp32.

        Returns residual and output together: [T, C] fp32.
        """
        (xk,) = token_shift(x, self.mix, shift, batch)
        return self.value(self.key.activated(xk, "relu_square", self.value.dtype), residual)


@dataclass(frozen=True, slots=True)
class RWKV7Block:
    """One layer. The norms give the model's dtype."""

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
        self.matmul_params, self.head_params = read.matmul_params, read.head_params

    def forward(self, tokens: Tensor, batch: Packed, pool: StateTensors) -> Tensor:
        """See `Model.forward`."""
        x = self._embedding_norm(self._embedding(tokens), torch.float32)
        v_first: Tensor | None = None
        for i, block in enumerate(self._blocks):
            x, v_first = block.time(
                block.time_norm(x, self.dtype), batch, pool["time_shift"][i], pool["wkv"][i], v_first, x
            )
            x = block.channel(block.channel_norm(x, self.dtype), batch, pool["channel_shift"][i], x)
        return self._norm(x, self.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """See `Model.logits`."""
        return self._head(hidden)


def _read_norm(read: WeightReader, name: str, size: int, eps: float) -> LayerNorm:
    return LayerNorm(read.tensor(f"{name}.weight", size), read.tensor(f"{name}.bias", size), eps)


def _read_low_rank(read: WeightReader, name: str, hidden: int, *, bias: bool = True) -> LowRank:
    rank = read.source.shape(f"{name}.lora.0.weight", 2)[0]
    return LowRank(
        down=read.linear(f"{name}.lora.0.weight", rank, hidden),
        up=read.linear(f"{name}.lora.2.weight", hidden, rank, bias=f"{name}.lora.2.bias" if bias else None),
    )


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
