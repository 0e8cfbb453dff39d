"""xLSTM-7b (Beck et al. 2025), whose layers are all mLSTM, in the transformers layout.

The mLSTM's state is a sum of k v^T, and its normaliser the same sum of k: as one recurrence, whose values have a column
of ones beside them. In the paper both are kept divided by e^m, where m is a running maximum of the gates, since
e^(input gate) knows no bounds. Here it does: the gates of this model are soft-capped at 15, so fp32 holds the sums
themselves, of millions of tokens, and there is no m.
"""

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
from ostinato.models.errors import UnsupportedModelError
from ostinato.models.layers import Embedding, GatedMLP, LayerNorm, RMSNorm, WeightReader

LARGEST_GATE_CAP = 30  # e^30 times the tokens of a lifetime is far from the end of fp32


@dataclass(frozen=True, slots=True)
class XLSTMConfig:
    """Sizes in elements. `key`, `value`: per head; `fused`: projections of one input are one tensor on disk."""

    layers: int
    hidden: int
    heads: int
    key: int
    value: int
    mlp: int
    vocab_size: int
    norm_eps: float
    gate_cap: float
    logit_cap: float
    fused: bool


def read_config(checkpoint: Checkpoint) -> XLSTMConfig:
    """transformers' xLSTMConfig, or the published one, which says embedding_dim and num_blocks.

    Raises CheckpointError, UnsupportedModelError: as ConfigReader; the gates are not capped low enough.
    """
    config = ConfigReader(checkpoint.config, checkpoint.folder / "config.json")
    for key, served in (
        ("use_bias", False),
        ("add_out_norm", True),
        ("add_post_blocks_norm", True),
        ("add_post_norm", False),
        ("add_qk_norm", False),
        ("eps", 1e-6),  # so small that leaving it out changes nothing: no denominator is below one
        ("tie_word_embeddings", False),
    ):
        config.only(key, served)
    config.only("weight_mode", "single", "fused")
    hidden = config.integer("hidden_size" if config.has("hidden_size") else "embedding_dim", 4096)
    heads, gate_cap = config.integer("num_heads", 8), config.positive("gate_soft_cap", 15.0)
    if gate_cap > LARGEST_GATE_CAP:
        raise UnsupportedModelError(
            f"{checkpoint.folder / 'config.json'}: gate_soft_cap = {gate_cap:g} is not supported "
            f"(at most {LARGEST_GATE_CAP})"
        )
    return XLSTMConfig(
        layers=config.parts("num_hidden_layers" if config.has("num_hidden_layers") else "num_blocks", 32),
        hidden=hidden,
        heads=heads,
        key=config.divide("num_heads", config.fraction_of(hidden, "qk_dim_factor", 0.5), heads),
        value=config.divide("num_heads", config.fraction_of(hidden, "v_dim_factor", 1.0), heads),
        mlp=_mlp_size(config, hidden),
        vocab_size=config.integer("vocab_size", 50304),
        norm_eps=config.positive("norm_eps", 1e-6),
        gate_cap=gate_cap,
        logit_cap=config.positive("output_logit_soft_cap", 30.0),
        fused=checkpoint.config.get("weight_mode") == "fused",
    )


def _mlp_size(config: ConfigReader, hidden: int) -> int:
    """`ffn_proj_factor` times the hidden size, up to a multiple."""
    multiple = config.integer("ffn_round_up_to_multiple_of", 64)
    return int((hidden * config.positive("ffn_proj_factor", 2.667) + multiple - 1) // multiple) * multiple


def _soft_cap(x: Tensor, cap: float) -> Tensor:
    """cap tanh(x / cap), fp32: the identity near zero, and never beyond `cap`."""
    return rows.tanh(x / cap) * cap


@dataclass(frozen=True, slots=True)
class MLSTM:
    """Section 2 of the paper. `inputs` joins q, k, v, the output gate, and the input and forget gates of the heads."""

    config: XLSTMConfig
    inputs: Linear
    gate_bias: Tensor  # [2 heads]
    norm: LayerNorm  # [heads, value]
    output: Linear

    def __call__(self, u: Tensor, batch: Packed, state: Tensor, residual: Tensor) -> Tensor:
        """u: [T, hidden]; state: [slots, heads, value + 1, key]; residual: [T, hidden] fp32.

        Returns residual and output together: [T, hidden] fp32.
        """
        c = self.config
        keys, values = c.heads * c.key, c.heads * c.value
        q, k, v, output_gate, gates = self.inputs(u).split([keys, keys, values, values, 2 * c.heads], dim=-1)
        write, forget = _soft_cap(gates + self.gate_bias, c.gate_cap).chunk(2, dim=-1)
        v = v.unflatten(-1, (c.heads, c.value))
        sums = recurrence(
            q.unflatten(-1, (c.heads, c.key)),
            k.unflatten(-1, (c.heads, c.key)) * rows.exp(write).unsqueeze(-1),
            torch.cat([v, torch.ones_like(v[..., :1])], dim=-1),
            state,
            batch,
            log_decay=rows.log_sigmoid(forget),
            scale=c.key**-0.5,
        )
        h = sums[..., :-1] / sums[..., -1:].abs().clamp(min=1.0)
        h = self.norm(h, torch.float32).flatten(1) * rows.sigmoid(output_gate)
        return self.output(h, residual)


def _read_mlstm(read: WeightReader, name: str, c: XLSTMConfig) -> MLSTM:
    keys, values = c.heads * c.key, c.heads * c.value
    if c.fused:
        inputs = [(f"{name}.qkv_opreact.weight", 2 * keys + 2 * values), (f"{name}.ifgate_preact.weight", 2 * c.heads)]
        gate_bias = read.tensor(f"{name}.ifgate_preact.bias", 2 * c.heads)
    else:
        sizes = {"q": keys, "k": keys, "v": values, "ogate_preact": values}
        gates = ("igate_preact", "fgate_preact")
        inputs = [(f"{name}.{part}.weight", size) for part, size in (sizes | dict.fromkeys(gates, c.heads)).items()]
        gate_bias = torch.cat([read.tensor(f"{name}.{gate}.bias", c.heads) for gate in gates])
    weight = read.tensor(f"{name}.multihead_norm.weight", values).view(c.heads, c.value)
    return MLSTM(
        config=c,
        inputs=read.joined(inputs, c.hidden),
        gate_bias=gate_bias,
        norm=LayerNorm(weight, torch.zeros_like(weight), c.norm_eps),
        output=read.linear(f"{name}.out_proj.weight", c.hidden, values),
    )


@dataclass(frozen=True, slots=True)
class XLSTMBlock:
    """One layer: the mLSTM and the MLP, each behind a norm and with a residual connection."""

    mixer_norm: RMSNorm
    mixer: MLSTM
    mlp_norm: RMSNorm
    mlp: GatedMLP

    def __call__(self, x: Tensor, batch: Packed, state: Tensor, dtype: torch.dtype) -> Tensor:
        """x: [T, hidden] fp32; state as in `MLSTM`; dtype: of the norms' outputs. Returns [T, hidden] fp32."""
        x = self.mixer(self.mixer_norm(x, dtype), batch, state, x)
        return self.mlp(self.mlp_norm(x, dtype), x)


def _read_block(read: WeightReader, name: str, c: XLSTMConfig) -> XLSTMBlock:
    parts = {"proj_up_gate_z": 2 * c.mlp} if c.fused else {"proj_up_gate": c.mlp, "proj_up": c.mlp}
    gate_up = [(f"{name}.ffn.{part}.weight", size) for part, size in parts.items()]
    return XLSTMBlock(
        mixer_norm=RMSNorm(read.tensor(f"{name}.norm_mlstm.weight", c.hidden), c.norm_eps),
        mixer=_read_mlstm(read, f"{name}.mlstm_layer", c),
        mlp_norm=RMSNorm(read.tensor(f"{name}.norm_ffn.weight", c.hidden), c.norm_eps),
        mlp=GatedMLP(read.joined(gate_up, c.hidden), read.linear(f"{name}.ffn.proj_down.weight", c.hidden, c.mlp)),
    )


class XLSTM:
    """See `ostinato.models.base.Model`. State per layer: `mlstm` [heads, value + 1, key] fp32, the normaliser last."""

    family = "xLSTM"

    def __init__(self, checkpoint: Checkpoint, config: XLSTMConfig, device: torch.device, dtype: torch.dtype) -> None:
        c, read = config, WeightReader(checkpoint, device, dtype)
        self.architecture = checkpoint.architecture
        self.vocab_size, self.dtype = c.vocab_size, dtype
        self.state_spec = StateSpec((StateTensor("mlstm", c.layers, (c.heads, c.value + 1, c.key), torch.float32),))
        self._embedding = Embedding(read.matrix("backbone.embeddings.weight", c.vocab_size, c.hidden))
        self._blocks = [_read_block(read, f"backbone.blocks.{i}", c) for i in range(c.layers)]
        self._norm = RMSNorm(read.tensor("backbone.out_norm.weight", c.hidden), c.norm_eps)
        self._head = read.head("lm_head.weight", c.vocab_size, c.hidden, self._embedding, tied=False)
        self._logit_cap = c.logit_cap
        self.weight_bytes = read.num_bytes
        self.matmul_params, self.head_params = read.matmul_params, read.head_params

    def forward(self, tokens: Tensor, batch: Packed, pool: StateTensors) -> Tensor:
        """See `Model.forward`."""
        x = self._embedding(tokens)
        for i, block in enumerate(self._blocks):
            x = block(x, batch, pool["mlstm"][i], self.dtype)
        return self._norm(x, self.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """See `Model.logits`."""
        return _soft_cap(self._head(hidden), self._logit_cap)


def load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> XLSTM:
    """The layout of transformers' xLSTMForCausalLM."""
    return XLSTM(checkpoint, read_config(checkpoint), device, dtype)
