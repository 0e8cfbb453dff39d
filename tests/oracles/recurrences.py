"""The recurrences of flash-linear-attention's references and of transformers' plain torch paths, with gradients.

    python -m tests.oracles.recurrences INPUTS OUTPUTS

Both files are safetensors. INPUTS holds tensors `family/operand` as `ostinato.kernels.recurrence` takes them, one
sequence each, `family/state` [H, V, K] where it does not begin empty, and weights `family/of_y`, `family/of_state`.
OUTPUTS holds `family/y`, `family/state`, and for every operand `family/gradient/operand`, of the sum of y and the state
times their weights.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Callable

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported, which fla does

from fla.ops.delta_rule.naive import delta_rule_recurrence
from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
from fla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence
from fla.ops.gla.naive import naive_recurrent_gla
from fla.ops.kda.naive import naive_recurrent_kda
from fla.ops.retention.naive import naive_retention
from fla.ops.rwkv6.recurrent_naive import naive_recurrent_rwkv6
from fla.ops.simple_gla.naive import naive_recurrent_simple_gla
from transformers.models.mamba.modeling_mamba import mamba_selective_scan
from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan
from transformers.models.qwen3_next.modeling_qwen3_next import l2norm

Operands = dict[str, Tensor]
Result = tuple[Tensor, Tensor | None]  # y [T, H, V], state [H, V, K] where the implementation returns one


def by_head(x: Operands, *names: str) -> tuple[Tensor, ...]:
    """[T, H, ...] -> [1, H, T, ...]."""
    return tuple(x[name].transpose(0, 1).unsqueeze(0) for name in names)


def by_token(x: Operands, *names: str) -> tuple[Tensor, ...]:
    """[T, H, ...] -> [1, T, H, ...]."""
    return tuple(x[name].unsqueeze(0) for name in names)


def initial(x: Operands) -> Tensor:
    """[H, V, K] -> [1, H, K, V]."""
    return x["state"].transpose(-1, -2).unsqueeze(0)


def from_heads(y: Tensor, state: Tensor) -> Result:
    return y[0].transpose(0, 1), state[0].transpose(-1, -2)


def from_tokens(y: Tensor, state: Tensor) -> Result:
    return y[0], state[0].transpose(-1, -2)


def retnet(x: Operands) -> Result:
    (y,) = naive_retention(*by_head(x, "q", "k", "v"))
    return y.transpose(0, 1), None


def mlstm(x: Operands) -> Result:
    return from_tokens(*naive_recurrent_simple_gla(*by_token(x, "q", "k", "v", "log_decay"), initial_state=initial(x)))


def gla(x: Operands) -> Result:
    operands = by_token(x, "q", "k", "v", "log_decay")
    return from_tokens(*naive_recurrent_gla(*operands, initial_state=initial(x), output_final_state=True))


def rwkv6(x: Operands) -> Result:
    operands = by_head(x, "q", "k", "v", "log_decay")
    return from_heads(
        *naive_recurrent_rwkv6(*operands, x["bonus"], scale=1.0, initial_state=initial(x), output_final_state=True)
    )


def delta_net(x: Operands) -> Result:
    return from_heads(*delta_rule_recurrence(*by_head(x, "q", "k", "v", "beta"), initial_state=initial(x)))


def gated_delta_net(x: Operands) -> Result:
    q, k, v, beta, log_decay = by_token(x, "q", "k", "v", "beta", "log_decay")
    q, k = l2norm(q), l2norm(k)
    return from_tokens(
        *naive_recurrent_gated_delta_rule(q, k, v, beta, log_decay, initial_state=initial(x), output_final_state=True)
    )


def kda(x: Operands) -> Result:
    operands = by_token(x, "q", "k", "v", "log_decay", "beta")
    return from_tokens(*naive_recurrent_kda(*operands, initial_state=initial(x), output_final_state=True))


def rwkv7(x: Operands) -> Result:
    return from_heads(*dplr_recurrence(*by_head(x, "q", "k", "v", "a", "b", "log_decay"), initial_state=initial(x)))


def mamba(x: Operands) -> Result:
    (v,), (step,), (gate,) = (by_channel(x[name]) for name in ("v", "step", "gate"))
    b, c = (x[name][:, 0].T.unsqueeze(0) for name in ("k", "q"))
    y, state = mamba_selective_scan(
        v.unsqueeze(0),
        step.unsqueeze(0),
        x["rate"][0],
        b,
        c,
        x["skip"][0],
        gate.unsqueeze(0),
        x["step_bias"][0],
        delta_softplus=True,
        return_last_state=True,
    )
    return y[0].T.unsqueeze(1), state


def by_channel(x: Tensor) -> Tensor:
    """[T, 1, V] -> [1, V, T]."""
    return x.permute(1, 2, 0)


def mamba2(x: Operands) -> Result:
    y, state = mamba2_chunk_scan(
        *by_token(x, "v", "step"),
        x["rate"],
        *by_token(x, "k", "q"),
        chunk_size=16,
        D=x["skip"],
        dt_bias=x["step_bias"],
        dt_softplus=True,
        initial_states=x["state"].unsqueeze(0),
        return_final_states=True,
    )
    return y[0], state[0]


FAMILIES: dict[str, Callable[[Operands], Result]] = {
    "retnet": retnet,
    "mlstm": mlstm,
    "gla": gla,
    "rwkv6": rwkv6,
    "delta_net": delta_net,
    "gated_delta_net": gated_delta_net,
    "kda": kda,
    "rwkv7": rwkv7,
    "mamba": mamba,
    "mamba2": mamba2,
}


def answer(family: str, tensors: Operands) -> Operands:
    weights = {name: tensors.pop(name) for name in ("of_y", "of_state")}
    leaves = {name: x.requires_grad_() for name, x in tensors.items()}
    y, state = FAMILIES[family](leaves)
    loss = (y * weights["of_y"]).sum()
    if state is not None:
        loss = loss + (state * weights["of_state"]).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    outputs = {"y": y} if state is None else {"y": y, "state": state}
    found = {f"gradient/{name}": x for name, x in zip(leaves, gradients, strict=True)}
    return {name: x.detach().contiguous() for name, x in (outputs | found).items()}


def main(inputs: str, outputs: str) -> None:
    families: dict[str, Operands] = defaultdict(dict)
    for name, x in load_file(inputs).items():
        family, _, operand = name.partition("/")
        families[family][operand] = x
    answers = {family: answer(family, tensors) for family, tensors in families.items()}
    save_file({f"{family}/{name}": x for family, found in answers.items() for name, x in found.items()}, outputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
