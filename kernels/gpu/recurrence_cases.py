"""The shapes at which the recurrence's kernels are compiled without a GPU: those of models that people run."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ostinato.kernels.gpu.compile import CompileCase
from ostinato.kernels.gpu.recurrence import Call, launches
from ostinato.kernels.gpu.recurrence_launch import Launch

_TOKENS = {"step": 1, "scan": 1024}
_SLOTS, _SEQUENCES = 64, 8


def compile_cases() -> list[CompileCase]:
    """Every kernel that a step and a scan of these models launch, with operands in bf16 and in fp32."""
    return [
        launch.case(f"{model}_{kind}_{str(dtype).removeprefix('torch.')}_{launch.kernel.__name__}")
        for model, form in _MODELS.items()
        for dtype in (torch.bfloat16, torch.float32)
        for kind, tokens in _TOKENS.items()
        for launch in _launches(form(tokens, dtype))
    ]


def _launches(call: Call) -> list[Launch]:
    return launches(call, _tensor(call.tokens, call.heads, call.values))


def _tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


Form = Callable[[int, torch.dtype], Call]
Optional = Callable[["_Sizes"], dict[str, Tensor]]


@dataclass(frozen=True)
class _Sizes:
    tokens: int
    dtype: torch.dtype
    heads: int
    values: int
    keys: int

    def per_token(self, *shape: int) -> Tensor:
        return _tensor(self.tokens, self.heads, *shape, dtype=self.dtype)


def _scalar_decay(sizes: _Sizes) -> dict[str, Tensor]:
    return {"log_decay": _tensor(sizes.tokens, sizes.heads)}


def _vector_decay(sizes: _Sizes) -> dict[str, Tensor]:
    return {"log_decay": _tensor(sizes.tokens, sizes.heads, sizes.keys)}


def _scalar_rate(sizes: _Sizes) -> dict[str, Tensor]:
    per_head = {name: _tensor(sizes.heads) for name in ("rate", "step_bias", "skip")}
    return {"step": sizes.per_token(), **per_head}


def _matrix_rate(sizes: _Sizes) -> dict[str, Tensor]:
    per_row = {name: _tensor(sizes.heads, sizes.values) for name in ("step_bias", "skip")}
    per_token = {name: sizes.per_token(sizes.values) for name in ("step", "gate")}
    return {"rate": _tensor(sizes.heads, sizes.values, sizes.keys), **per_row, **per_token}


def _beta(sizes: _Sizes) -> dict[str, Tensor]:
    return {"beta": sizes.per_token()}


def _a_and_b(sizes: _Sizes) -> dict[str, Tensor]:
    return {"a": sizes.per_token(sizes.keys), "b": sizes.per_token(sizes.keys)}


def _bonus(sizes: _Sizes) -> dict[str, Tensor]:
    return {"bonus": _tensor(sizes.heads, sizes.keys)}


def _model(heads: int, values: int, keys: int, *optional: Optional, groups: int = 0, normalize: bool = False) -> Form:
    """A model's calls; q and k have `groups` heads if that is given."""

    def call(tokens: int, dtype: torch.dtype) -> Call:
        sizes = _Sizes(tokens, dtype, heads, values, keys)
        slots = _tensor(_SEQUENCES, dtype=torch.int32)
        return Call(
            q=_tensor(tokens, groups or heads, keys, dtype=dtype),
            k=_tensor(tokens, groups or heads, keys, dtype=dtype),
            v=sizes.per_token(values),
            state=_tensor(_SLOTS, heads, values, keys),
            src=slots,
            dst=slots,
            starts=_tensor(_SEQUENCES + 1, dtype=torch.int32),
            longest=tokens,
            normalize=normalize,
            scale=keys**-0.5,
            **{name: x for operands in optional for name, x in operands(sizes).items()},
        )

    return call


_MODELS: dict[str, Form] = {
    "mamba_130m": _model(1, 1536, 16, _matrix_rate),
    "mamba2_370m": _model(32, 64, 128, _scalar_rate, groups=1),
    "retnet_1b3": _model(8, 512, 256, _scalar_decay),
    "xlstm_7b": _model(8, 513, 256, _scalar_decay),
    "based_360m": _model(16, 65, 273),
    "gla_340m": _model(4, 256, 128, _vector_decay),
    "gla_1b3": _model(4, 512, 256, _vector_decay),
    "rwkv6_7b": _model(64, 64, 64, _vector_decay, _bonus),
    "delta_net_1b3": _model(16, 128, 128, _beta, normalize=True),
    "gated_deltanet_370m": _model(8, 128, 128, _scalar_decay, _beta, normalize=True),
    "gated_deltanet_1b3": _model(6, 512, 256, _scalar_decay, _beta, normalize=True),
    "kda_1b3": _model(16, 128, 128, _vector_decay, _beta, normalize=True),
    "rwkv7_1b5": _model(32, 64, 64, _vector_decay, _a_and_b),
}
