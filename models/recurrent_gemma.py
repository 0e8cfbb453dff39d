"""RecurrentGemma (Botev et al. 2024) in transformers' layout: Griffin, or Hawk if no layer attends (De et al. 2024).

transformers and the authors' own package differ by one in what a window is: W tokens or W + 1. The former holds here.
"""

from dataclasses import dataclass
from itertools import cycle, islice

import torch
from torch import Tensor

from ostinato.kernels import rows
from ostinato.kernels.conv import causal_conv
from ostinato.kernels.diagonal import diagonal
from ostinato.kernels.linear import Linear
from ostinato.kernels.packed import Packed
from ostinato.models.base import StateSpec, StateTensor, StateTensors
from ostinato.models.checkpoint import Checkpoint
from ostinato.models.config import ConfigReader
from ostinato.models.hybrid_backbone import Ends, HybridBackbone
from ostinato.models.layers import Embedding, GatedMLP, RMSNorm, WeightReader
from ostinato.models.window import Places, Rotary, WindowAttention, WindowSizes, read_rotary

DECAY = 8.0  # the paper's c
KINDS = ("recurrent", "attention")


@dataclass(frozen=True, slots=True)
class RecurrentGemmaConfig:
    """Sizes in elements. kinds: of every layer, one of KINDS; blocks: into which the RG-LRU's gates are divided."""

    kinds: tuple[str, ...]
    hidden: int
    lru: int
    blocks: int
    conv_width: int
    attention: WindowSizes
    attention_bias: bool
    rotary_width: int
    rope_base: float
    mlp: int
    vocab_size: int
    norm_eps: float
    logit_cap: float
    tied: bool

    def state(self, dtype: torch.dtype) -> StateSpec:
        """`position`, and per layer the ring of its window, or `recurrent` [lru] fp32 and the `conv` tail.

        dtype: of the computation.
        """
        recurrent, attending = (self.kinds.count(kind) for kind in KINDS)
        tensors = self.attention.state(attending, dtype)
        if recurrent:
            tensors += (
                StateTensor("recurrent", recurrent, (self.lru,), torch.float32),
                StateTensor("conv", recurrent, (self.conv_width - 1, self.lru), dtype),
            )
        return StateSpec(tensors)


def read_config(checkpoint: Checkpoint) -> RecurrentGemmaConfig:
    """transformers' RecurrentGemmaConfig, whose `intermediate_size` counts the MLP's gate and its input together.

    Raises CheckpointError, UnsupportedModelError: as ConfigReader.
    """
    config = ConfigReader(checkpoint.config, checkpoint.folder / "config.json")
    config.only("hidden_activation", "gelu_pytorch_tanh")
    config.only("embeddings_scale_by_sqrt_dim", True)
    hidden, heads = config.integer("hidden_size", 2560), config.integer("num_attention_heads", 10)
    head, lru = config.divide("num_attention_heads", hidden, heads), config.integer("lru_width", hidden)
    config.only("head_dim", head)
    config.divide("num_attention_heads", lru, heads)
    kv_heads = config.integer("num_key_value_heads", heads)
    config.divide("num_key_value_heads", heads, kv_heads)
    pattern = config.words(
        "block_types" if config.has("block_types") else "_block_types", (*KINDS[:1] * 2, *KINDS[1:]), KINDS
    )
    rotary_width, rope_base = read_rotary(config, head, base=10000.0, part=0.5)
    return RecurrentGemmaConfig(
        kinds=tuple(islice(cycle(pattern), config.parts("num_hidden_layers", 26))),
        hidden=hidden,
        lru=lru,
        blocks=heads,
        conv_width=config.integer("conv1d_width", 4),
        attention=WindowSizes(heads, kv_heads, head, config.integer("attention_window_size", 2048)),
        attention_bias=config.flag("attention_bias", False),
        rotary_width=rotary_width,
        rope_base=rope_base,
        mlp=config.divide("intermediate_size", config.integer("intermediate_size", 7680), 2),
        vocab_size=config.integer("vocab_size", 256000),
        norm_eps=config.positive("rms_norm_eps", 1e-6),
        logit_cap=config.positive("logits_soft_cap", 30.0),
        tied=config.flag("tie_word_embeddings", True),
    )


@dataclass(frozen=True, slots=True)
class RecurrentBlock:
    """Griffin's section 2.3, with the RG-LRU of section 2.4.

    inputs: the branch that gates, then the one that recurs. gates: for every block of channels, the outputs of the
    input gate and then of the recurrence gate. rate: [lru], which is c log(Lambda) of the paper's equation 3.
    """

    inputs: Linear
    conv_weight: Tensor  # [width, lru]
    conv_bias: Tensor
    gates: tuple[Linear, ...]
    rate: Tensor
    output: Linear

    def __call__(
        self, u: Tensor, batch: Packed, places: Places, conv: Tensor, recurrent: Tensor, residual: Tensor
    ) -> Tensor:
        """u: [T, hidden]; conv: [slots, width - 1, lru]; recurrent: [slots, lru]; residual: [T, hidden] fp32.

        Returns residual and output together: [T, hidden] fp32.
        """
        y, x = self.inputs(u).chunk(2, dim=-1)
        x = causal_conv(x, self.conv_weight, self.conv_bias, conv, batch, activate=False)
        input_gate, recurrence_gate = self._gates(x)
        log_decay = recurrence_gate * self.rate
        scale = rows.sqrt(1 - rows.exp(2 * log_decay))
        scale = torch.where((places.positions == 0).unsqueeze(-1), 1.0, scale)  # the first input counts whole
        h = diagonal(x * input_gate * scale, log_decay, recurrent, batch)
        return self.output(rows.geglu(torch.cat([y, h], dim=-1), self.output.dtype), residual)

    def _gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[T, lru] each: within every block, a projection and its sigmoid."""
        blocks = x.chunk(len(self.gates), dim=-1)
        pairs = [gate(block).chunk(2, dim=-1) for gate, block in zip(self.gates, blocks, strict=True)]
        of_input, of_recurrence = (torch.cat(parts, dim=-1) for parts in zip(*pairs, strict=True))
        return rows.sigmoid(of_input), rows.sigmoid(of_recurrence)


def _read_recurrent(read: WeightReader, name: str, c: RecurrentGemmaConfig) -> RecurrentBlock:
    conv = read.tensor(f"{name}.conv_1d.weight", c.lru, 1, c.conv_width)
    branches = [(f"{name}.linear_{part}.weight", c.lru) for part in "yx"]
    return RecurrentBlock(
        inputs=read.joined(branches, c.hidden, biases=[f"{name}.linear_{part}.bias" for part in "yx"]),
        conv_weight=conv.squeeze(1).T.contiguous(),
        conv_bias=read.tensor(f"{name}.conv_1d.bias", c.lru),
        gates=_read_gates(read, f"{name}.rg_lru", c),
        rate=-DECAY * rows.softplus(read.tensor(f"{name}.rg_lru.recurrent_param", c.lru)),
        output=read.linear(f"{name}.linear_out.weight", c.hidden, c.lru, bias=f"{name}.linear_out.bias"),
    )


def _read_gates(read: WeightReader, name: str, c: RecurrentGemmaConfig) -> tuple[Linear, ...]:
    width = c.lru // c.blocks
    gates = [f"{name}.{gate}_gate" for gate in ("input", "recurrent")]
    weights = torch.cat([read.matrix(f"{gate}_weight", c.blocks, width, width).mT for gate in gates], dim=1)
    biases = torch.cat([read.tensor(f"{gate}_bias", c.blocks, width) for gate in gates], dim=1)
    read.matmul_params += weights.numel()
    return tuple(Linear(weight, bias) for weight, bias in zip(weights, biases, strict=True))


def _read_attention(read: WeightReader, name: str, c: RecurrentGemmaConfig) -> WindowAttention:
    projections = [f"{name}.{part}_proj" for part in "qkv"]
    parts = [(f"{part}.weight", out) for part, out in zip(projections, c.attention.joined, strict=True)]
    biases = [f"{part}.bias" for part in projections] if c.attention_bias else []
    output = read.linear(f"{name}.o_proj.weight", c.hidden, c.attention.joined[0], bias=f"{name}.o_proj.bias")
    return WindowAttention(c.attention, read.joined(parts, c.hidden, biases=biases), output)


@dataclass(frozen=True, slots=True)
class GriffinLayer:
    """A temporal block and an MLP, each behind a norm and with a residual connection. index: among its kind."""

    index: int
    temporal_norm: RMSNorm
    temporal: RecurrentBlock | WindowAttention
    mlp_norm: RMSNorm
    mlp: GatedMLP

    def __call__(self, x: Tensor, batch: Packed, places: Places, pool: StateTensors, dtype: torch.dtype) -> Tensor:
        """x: [T, hidden] fp32; pool: the model's; dtype: of the norms' outputs. Returns [T, hidden] fp32."""
        names = ("conv", "recurrent") if isinstance(self.temporal, RecurrentBlock) else ("window_keys", "window_values")
        first, second = (pool[name][self.index] for name in names)
        x = self.temporal(self.temporal_norm(x, dtype), batch, places, first, second, x)
        return self.mlp(self.mlp_norm(x, dtype), x)


def _read_layer(read: WeightReader, layer: int, c: RecurrentGemmaConfig) -> GriffinLayer:
    name, kind = f"model.layers.{layer}", c.kinds[layer]
    read_temporal = _read_recurrent if kind == "recurrent" else _read_attention
    projections = [f"{name}.mlp_block.{part}_proj" for part in ("gate", "up")]
    gate_up = read.joined(
        [(f"{part}.weight", c.mlp) for part in projections], c.hidden, biases=[f"{part}.bias" for part in projections]
    )
    down = f"{name}.mlp_block.down_proj"
    return GriffinLayer(
        index=c.kinds[:layer].count(kind),
        temporal_norm=_read_norm(read, f"{name}.temporal_pre_norm.weight", c),
        temporal=read_temporal(read, f"{name}.temporal_block", c),
        mlp_norm=_read_norm(read, f"{name}.channel_pre_norm.weight", c),
        mlp=GatedMLP(gate_up, read.linear(f"{down}.weight", c.hidden, c.mlp, bias=f"{down}.bias"), "geglu"),
    )


def _read_norm(read: WeightReader, name: str, c: RecurrentGemmaConfig) -> RMSNorm:
    return RMSNorm(1 + read.tensor(name, c.hidden), c.norm_eps)


def load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> HybridBackbone:
    """The layout of transformers' RecurrentGemmaForCausalLM."""
    c, read = read_config(checkpoint), WeightReader(checkpoint, device, dtype)
    embedding = Embedding(read.matrix("model.embed_tokens.weight", c.vocab_size, c.hidden))
    ends = Ends(
        embedding=embedding,
        norm=_read_norm(read, "model.final_norm.weight", c),
        head=read.head("lm_head.weight", c.vocab_size, c.hidden, embedding, c.tied),
        # Trained so: the factor is rounded to bf16, whatever the dtype.
        scale=float(torch.tensor(c.hidden**0.5, dtype=torch.bfloat16)),
        finish=lambda logits: rows.tanh(logits / c.logit_cap) * c.logit_cap,
    )
    return HybridBackbone(
        family="RecurrentGemma",
        architecture=checkpoint.architecture,
        vocab_size=c.vocab_size,
        state=c.state(dtype),
        sizes=c.attention,
        rotary=Rotary(c.rotary_width, c.rope_base, device) if "attention" in c.kinds else None,
        ends=ends,
        layers=[_read_layer(read, i, c) for i in range(len(c.kinds))],
        read=read,
    )
