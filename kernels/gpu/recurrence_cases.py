"""The shapes at which the recurrence's kernels are compiled without a GPU: those of models that people run."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ostinato.kernels.gpu import mode
from ostinato.kernels.gpu.compile import CompileCase
from ostinato.kernels.gpu.recurrence import Call, launches
from ostinato.kernels.gpu.recurrence_launch import Launch

_SLOTS, _SEQUENCES = 64, 8

Form = Callable[[int, torch.dtype], Call]
Optional = Callable[["_Sizes"], dict[str, Tensor]]


def compile_cases() -> list[CompileCase]:
    """What a step and a scan of these models launch. Mamba's scan is the kernel of its step."""
    named = {
        name: launch
        for model, form in _MODELS.items()
        for dtype in (torch.bfloat16, torch.float32)
        for name, launch in _launches(model, form, dtype).items()
    }
    return [launch.case(name) for name, launch in named.items()]


def _launches(model: str, form: Form, dtype: torch.dtype) -> dict[str, Launch]:
    """In a model of `dtype`, which hands over fp32 all the same: projections and the convolution return it."""
    found = {}
    for tokens in (1, 1024):
        call = form(tokens, torch.float32)
        with mode.set_to(False, dtype):
            called = launches(call, _tensor(call.tokens, call.heads, call.values))
        for launch in called:
            in_dtype = f" {dtype}".replace("torch.", "") if "DTYPE" in launch.arguments else ""
            found[f"{model}_{launch.kernel.__name__}{in_dtype}"] = launch
    return found


def _tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


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
    "gla_340m": _model(4, 256, 128, _vector_decay),
    "rwkv6_7b": _model(64, 64, 64, _vector_decay, _bonus),
    "based_360m": _model(16, 64, 273),
    "gated_deltanet_370m": _model(8, 128, 128, _scalar_decay, _beta, normalize=True),
    "gated_deltanet_1b3": _model(6, 512, 256, _scalar_decay, _beta, normalize=True),
    "kda_48b": _model(32, 128, 128, _vector_decay, _beta, normalize=True),
    "rwkv7_1b5": _model(32, 64, 64, _vector_decay, _a_and_b),
}
