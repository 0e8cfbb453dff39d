"""Mamba (Gu and Dao 2023), in the transformers layout and the original state-spaces layout.

Both layouts name the same tensors, but for the embedding and for how the config is written.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ostinato.kernels.conv import causal_conv
from ostinato.kernels.linear import Linear
from ostinato.kernels.packed import Packed
from ostinato.kernels.recurrence import recurrence
from ostinato.models.base import StateSpec, StateTensor
from ostinato.models.checkpoint import Checkpoint
from ostinato.models.config import ConfigReader
from ostinato.models.layers import RMSNorm, WeightReader
from ostinato.models.mamba_backbone import MambaBackbone


@dataclass(frozen=True, slots=True)
class MambaConfig:
    """Sizes in elements. `dt_rank`: width of the low-rank step size projection.

    `inner_norm_eps`: of norms without weights on the low-rank step size, B and C, which plain Mamba has not.
    """

    layers: int
    hidden: int
    inner: int
    state_size: int
    conv_width: int
    dt_rank: int
    vocab_size: int
    vocab_rows: int
    norm_eps: float
    projection_bias: bool
    conv_bias: bool
    tied: bool
    embedding_name: str
    inner_norm_eps: float | None = None

    @property
    def inner_sizes(self) -> list[int]:
        """Widths of what x_proj computes: the low-rank step size, B and C."""
        return [self.dt_rank, self.state_size, self.state_size]

    def state(self, dtype: torch.dtype) -> StateSpec:
        """`ssm` [inner, state_size] fp32 and the `conv` tail. dtype: of the computation."""
        return StateSpec(
            (
                StateTensor("ssm", self.layers, (self.inner, self.state_size), torch.float32),
                StateTensor("conv", self.layers, (self.conv_width - 1, self.inner), dtype),
            )
        )


def read_hf_config(checkpoint: Checkpoint) -> MambaConfig:
    """transformers' MambaConfig. An explicit intermediate_size wins over `expand`."""
    config = ConfigReader(checkpoint.config, checkpoint.folder / "config.json")
    config.only("hidden_act", "silu", "swish")
    config.only("use_falcon_mamba_norms", False)
    hidden = config.integer("hidden_size", 768)
    rank = checkpoint.config.get("time_step_rank", "auto")
    vocab_size = config.integer("vocab_size", 50280)
    return MambaConfig(
        layers=config.parts("num_hidden_layers", 32),
        hidden=hidden,
        inner=_inner_size(config, hidden),
        state_size=config.integer("state_size", 16),
        conv_width=config.integer("conv_kernel", 4),
        dt_rank=math.ceil(hidden / 16) if rank == "auto" else config.integer("time_step_rank"),
        vocab_size=vocab_size,
        vocab_rows=vocab_size,
        norm_eps=config.positive("layer_norm_epsilon", 1e-5),
        projection_bias=config.flag("use_bias", False),
        conv_bias=config.flag("use_conv_bias", True),
        tied=config.flag("tie_word_embeddings", True),
        embedding_name="backbone.embeddings.weight",
    )


def _inner_size(config: ConfigReader, hidden: int) -> int:
    if config.has("intermediate_size"):
        return config.integer("intermediate_size")
    return config.fraction_of(hidden, "expand", 2)


def read_original_config(checkpoint: Checkpoint) -> MambaConfig:
    """mamba_ssm's MambaConfig: the vocabulary is padded to a multiple.

    A tied output matrix is on disk all the same in the published files; where it is not, the embedding is it.
    """
    config = ConfigReader(checkpoint.config, checkpoint.folder / "config.json")
    config.only("rms_norm", True)
    config.only("d_intermediate", 0)
    ssm = config.section("ssm_cfg")
    ssm.only("layer", "Mamba1")
    hidden = config.integer("d_model")
    rank = (checkpoint.config.get("ssm_cfg") or {}).get("dt_rank", "auto")
    multiple, vocab_size = config.integer("pad_vocab_size_multiple", 8), config.integer("vocab_size")
    return MambaConfig(
        layers=config.parts("n_layer"),
        hidden=hidden,
        inner=ssm.fraction_of(hidden, "expand", 2),
        state_size=ssm.integer("d_state", 16),
        conv_width=ssm.integer("d_conv", 4),
        dt_rank=math.ceil(hidden / 16) if rank == "auto" else ssm.integer("dt_rank"),
        vocab_size=vocab_size,
        vocab_rows=math.ceil(vocab_size / multiple) * multiple,
        norm_eps=1e-5,
        projection_bias=ssm.flag("bias", False),
        conv_bias=ssm.flag("conv_bias", True),
        tied=config.flag("tie_embeddings", True),
        embedding_name="backbone.embedding.weight",
    )


@dataclass(frozen=True, slots=True)
class MambaMixer:
    """Algorithm 2 of the paper. rate: [1, inner, state], which is A = -exp(A_log); step_bias, skip: [1, inner]."""

    config: MambaConfig
    in_proj: Linear
    conv_weight: Tensor  # [width, inner]
    conv_bias: Tensor | None
    x_proj: Linear
    dt_proj: Linear
    step_bias: Tensor
    rate: Tensor
    skip: Tensor
    out_proj: Linear
    inner_norms: tuple[RMSNorm, ...] = ()  # of the low-rank step size, B and C, in this order

    def __call__(self, u: Tensor, batch: Packed, conv: Tensor, ssm: Tensor, residual: Tensor) -> Tensor:
        """u: [T, hidden]; conv: [slots, width - 1, inner]; ssm: [slots, inner, state]; residual: [T, hidden] fp32.

        Returns residual and output together: [T, hidden] fp32.
        """
        c = self.config
        x, z = self.in_proj(u).split(c.inner, dim=-1)
        x = causal_conv(x, self.conv_weight, self.conv_bias, conv, batch)
        dt, b, q = self._split(self.x_proj(x))
        y = recurrence(
            q.unsqueeze(1),
            b.unsqueeze(1),
            x.unsqueeze(1),
            ssm.unsqueeze(1),
            batch,
            rate=self.rate,
            step=self.dt_proj(dt).unsqueeze(1),
            step_bias=self.step_bias,
            skip=self.skip,
            gate=z.unsqueeze(1),
        )
        return self.out_proj(y.squeeze(1), residual)

    def _split(self, mixed: Tensor) -> list[Tensor]:
        """The low-rank step size, B and C, normalised where the model does that."""
        parts = mixed.split(self.config.inner_sizes, dim=-1)
        if not self.inner_norms:
            return list(parts)
        return [norm(part, torch.float32) for norm, part in zip(self.inner_norms, parts, strict=True)]


def read_mixer(read: WeightReader, name: str, c: MambaConfig) -> MambaMixer:
    """The layer whose tensors begin with `name`. Raises CheckpointError, as WeightReader."""
    conv = read.tensor(f"{name}.conv1d.weight", c.inner, 1, c.conv_width)
    return MambaMixer(
        config=c,
        in_proj=_projection(read, f"{name}.in_proj", 2 * c.inner, c.hidden, c),
        conv_weight=conv.squeeze(1).T.contiguous(),
        conv_bias=read.tensor(f"{name}.conv1d.bias", c.inner) if c.conv_bias else None,
        x_proj=read.linear(f"{name}.x_proj.weight", c.dt_rank + 2 * c.state_size, c.inner),
        dt_proj=read.linear(f"{name}.dt_proj.weight", c.inner, c.dt_rank),
        step_bias=read.tensor(f"{name}.dt_proj.bias", c.inner).unsqueeze(0),
        rate=read.tensor(f"{name}.A_log", c.inner, c.state_size).exp().neg().unsqueeze(0),
        skip=read.tensor(f"{name}.D", c.inner).unsqueeze(0),
        out_proj=_projection(read, f"{name}.out_proj", c.hidden, c.inner, c),
        inner_norms=_inner_norms(read.device, c),
    )


def _inner_norms(device: torch.device, c: MambaConfig) -> tuple[RMSNorm, ...]:
    if c.inner_norm_eps is None:
        return ()
    return tuple(RMSNorm(torch.ones(size, device=device), c.inner_norm_eps) for size in c.inner_sizes)


def _projection(read: WeightReader, name: str, out: int, into: int, c: MambaConfig) -> Linear:
    return read.linear(f"{name}.weight", out, into, bias=f"{name}.bias" if c.projection_bias else None)


def load_hf(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> MambaBackbone:
    """The layout of transformers' MambaForCausalLM."""
    return MambaBackbone("Mamba", checkpoint, read_hf_config(checkpoint), read_mixer, device, dtype)


def load_original(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> MambaBackbone:
    """The layout of the state-spaces/mamba repository."""
    return MambaBackbone("Mamba", checkpoint, read_original_config(checkpoint), read_mixer, device, dtype)
