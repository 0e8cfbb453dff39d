"""Qwen3-Next (Qwen team 2025): Gated DeltaNet, gated attention in some layers, and experts, in transformers' layout.

Attention holds a window with sinks, as in `mamba2_hybrid`. Norms of the residual stream, of queries and of keys are
stored less one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ostinato.kernels import rows
from ostinato.kernels.experts import Experts
from ostinato.kernels.linear import Linear
from ostinato.kernels.packed import Packed
from ostinato.models.base import StateTensors
from ostinato.models.checkpoint import Checkpoint
from ostinato.models.fla_mixers import Reading, ShortConvolution
from ostinato.models.gated_deltanet import GatedDeltaNetMixer
from ostinato.models.hybrid_backbone import Ends, HybridBackbone
from ostinato.models.layers import Embedding, GatedMLP, RMSNorm, WeightReader
from ostinato.models.mixture import MixtureOfExperts
from ostinato.models.qwen3_next_config import Qwen3NextConfig, read_config
from ostinato.models.window import Places, Rotary, WindowAttention, head_norm


@dataclass(frozen=True, slots=True)
class GatedShare:
    """The MLP that all tokens share, behind a sigmoid. gate: [1, hidden]."""

    gate: Linear
    mlp: GatedMLP

    def __call__(self, x: Tensor, residual: Tensor) -> Tensor:
        """x: [T, hidden]; residual: [T, hidden] fp32, added to the result. Returns [T, hidden] fp32."""
        return residual + self.mlp.down(self.mlp.inner(x, self.mlp.down.dtype)) * rows.sigmoid(self.gate(x))


@dataclass(frozen=True, slots=True)
class Qwen3NextLayer:
    """A mixer and an MLP, each behind a norm and with a residual connection. index: among the layers of its kind."""

    index: int
    mixer_norm: RMSNorm
    mixer: GatedDeltaNetMixer | WindowAttention
    mlp_norm: RMSNorm
    mlp: GatedMLP | MixtureOfExperts

    def __call__(self, x: Tensor, batch: Packed, places: Places, pool: StateTensors, dtype: torch.dtype) -> Tensor:
        """x: [T, hidden] fp32; pool: the model's; dtype: of the norms' outputs. Returns [T, hidden] fp32."""
        u, i = self.mixer_norm(x, dtype), self.index
        if isinstance(self.mixer, WindowAttention):
            x = self.mixer(u, batch, places, pool["window_keys"][i], pool["window_values"][i], x)
        else:
            state = {name: pool[name][i] for name in ("recurrent", "conv")}
            x = self.mixer(u, Reading(batch, places.past, places.positions, {}), state, x)
        return self.mlp(self.mlp_norm(x, dtype), x)


def _read_norm(read: WeightReader, name: str, size: int, eps: float) -> RMSNorm:
    return RMSNorm(read.tensor(name, size) + 1, eps)


def _read_mixer(read: WeightReader, name: str, config: Qwen3NextConfig) -> GatedDeltaNetMixer:
    """Rows of the projections are sorted by key head on disk: each with its q, k, v and gate, its beta and decay."""
    c = config.mixer
    hidden, shared = c.shell.hidden, c.value_heads // c.heads
    qkvz = read.matrix(f"{name}.in_proj_qkvz.weight", sum(c.joined) + c.joined[2], hidden)
    ba = read.matrix(f"{name}.in_proj_ba.weight", 2 * c.value_heads, hidden)
    q, k, v, z = qkvz.view(c.heads, -1, hidden).split([c.key, c.key, shared * c.value, shared * c.value], dim=1)
    beta, decay = ba.view(c.heads, -1, hidden).split(shared, dim=1)
    inputs = torch.cat([part.flatten(0, 1) for part in (q, k, v, decay, beta, z)])
    convolution = read.tensor(f"{name}.conv1d.weight", sum(c.joined), 1, c.conv_width)
    return GatedDeltaNetMixer(
        config=c,
        inputs=read.projection(inputs),
        convolution=ShortConvolution(convolution.squeeze(1).T.contiguous()),
        rate=read.tensor(f"{name}.A_log", c.value_heads).exp().neg(),
        step_bias=read.tensor(f"{name}.dt_bias", c.value_heads),
        norm=RMSNorm(read.tensor(f"{name}.norm.weight", c.value), c.shell.norm_eps),
        output=read.linear(f"{name}.out_proj.weight", hidden, c.joined[2]),
    )


def _read_attention(read: WeightReader, name: str, config: Qwen3NextConfig) -> WindowAttention:
    """Rows of q_proj are sorted by head on disk: each with its query and its gate."""
    sizes, shell = config.attention, config.mixer.shell
    queries, keys, values = sizes.joined
    both = read.matrix(f"{name}.q_proj.weight", 2 * queries, shell.hidden)
    q, gate = both.view(sizes.heads, 2, sizes.head, shell.hidden).unbind(1)
    k = read.matrix(f"{name}.k_proj.weight", keys, shell.hidden)
    v = read.matrix(f"{name}.v_proj.weight", values, shell.hidden)
    q_norm, k_norm = (read.tensor(f"{name}.{part}_norm.weight", sizes.head) + 1 for part in "qk")
    return WindowAttention(
        sizes=sizes,
        qkv=read.projection(torch.cat([q.flatten(0, 1), k, v])),
        output=read.linear(f"{name}.o_proj.weight", shell.hidden, queries),
        norm=head_norm(q_norm, k_norm, sizes, shell.norm_eps),
        gate=read.projection(gate.flatten(0, 1)),
    )


def _read_mlp(read: WeightReader, name: str, hidden: int, inner: int) -> GatedMLP:
    gate_up = [(f"{name}.{part}_proj.weight", inner) for part in ("gate", "up")]
    return GatedMLP(read.joined(gate_up, hidden), read.linear(f"{name}.down_proj.weight", hidden, inner))


def _read_experts(read: WeightReader, name: str, config: Qwen3NextConfig) -> MixtureOfExperts:
    c, hidden = config.experts, config.mixer.shell.hidden
    names = [f"{name}.experts.{i}" for i in range(c.count)]
    gate_up = [
        torch.cat([read.matrix(f"{e}.{part}_proj.weight", c.inner, hidden) for part in ("gate", "up")]) for e in names
    ]
    down = [read.matrix(f"{e}.down_proj.weight", hidden, c.inner) for e in names]
    read.matmul_params += c.chosen * 3 * c.inner * hidden
    share = read.linear(f"{name}.shared_expert_gate.weight", 1, hidden)
    return MixtureOfExperts(
        router=read.linear(f"{name}.gate.weight", c.count, hidden),
        experts=Experts(gate_up, down),
        shared=GatedShare(share, _read_mlp(read, f"{name}.shared_expert", hidden, c.shared)),
        chosen=c.chosen,
        normalize=c.normalize,
    )


def _read_layer(read: WeightReader, layer: int, config: Qwen3NextConfig) -> Qwen3NextLayer:
    name, attends, shell = f"model.layers.{layer}", layer in config.attending, config.mixer.shell
    mixer = (
        _read_attention(read, f"{name}.self_attn", config)
        if attends
        else _read_mixer(read, f"{name}.linear_attn", config)
    )
    return Qwen3NextLayer(
        index=(config.attending if attends else config.recurrent).index(layer),
        mixer_norm=_read_norm(read, f"{name}.input_layernorm.weight", shell.hidden, shell.norm_eps),
        mixer=mixer,
        mlp_norm=_read_norm(read, f"{name}.post_attention_layernorm.weight", shell.hidden, shell.norm_eps),
        mlp=_read_experts(read, f"{name}.mlp", config)
        if layer in config.experts.layers
        else _read_mlp(read, f"{name}.mlp", shell.hidden, shell.mlp),
    )


def load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> HybridBackbone:
    """The layout of transformers' Qwen3NextForCausalLM. Its heads that guess further tokens (`mtp`) are not read."""
    config, read = read_config(checkpoint), WeightReader(checkpoint, device, dtype)
    checkpoint.drop(*(name for name in checkpoint.names if name.startswith("mtp.")))
    shell = config.mixer.shell
    embedding = Embedding(read.matrix("model.embed_tokens.weight", shell.vocab_size, shell.hidden))
    ends = Ends(
        embedding=embedding,
        norm=_read_norm(read, "model.norm.weight", shell.hidden, shell.norm_eps),
        head=read.head("lm_head.weight", shell.vocab_size, shell.hidden, embedding, shell.tied),
    )
    return HybridBackbone(
        family="Qwen3-Next",
        architecture=checkpoint.architecture,
        vocab_size=shell.vocab_size,
        state=config.state(dtype),
        sizes=config.attention,
        rotary=Rotary(config.rotary_width, config.rope_base, device),
        ends=ends,
        layers=[_read_layer(read, i, config) for i in range(shell.layers)],
        read=read,
    )
