"""Calls of operators as values: what `ostinato doctor --gpu` checks and times.

A call knows which of its arguments belong to tokens, to sequences, to slots, or to nothing of these, so that the same
call can be made in parts: some of its sequences, some of their tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ostinato.kernels.packed import Packed

Parts = tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]  # per token, pools, parameters
Function = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of an operator.

    per_token: [T, ...] each. pools: [slots, ...] each, updated in place; empty for operators without memory.
    past: tokens that each sequence has read before, for operators that ask for it. batch: also for operators without
    memory, which ignore it. token_dim: the dimension of the output that counts tokens.
    """

    operator: str
    reference: Function
    per_token: dict[str, Tensor]
    pools: dict[str, Tensor]
    parameters: dict[str, Any]  # tensors, numbers, dtypes, None
    batch: Packed
    past: Tensor | None = None
    token_dim: int = 0

    def run(self, function: Function) -> Tensor:
        """Calls a launcher or a reference: both have the operator's signature. Returns [T, ...], all outputs in one."""
        arguments: dict[str, Any] = {**self.per_token, **self.pools, **self.parameters, "past": self.past}
        arguments |= {name: getattr(self.batch, name) for name in ("src", "dst", "starts", "longest")}
        positional, named = [], {}
        for argument in getattr(torch.ops.ostinato, self.operator).default._schema.arguments:
            if argument.name not in arguments:
                continue  # it has a default
            if argument.kwarg_only:
                named[argument.name] = arguments[argument.name]
            else:
                positional.append(arguments[argument.name])
        outputs = function(*positional, **named)
        joined = outputs if isinstance(outputs, Tensor) else torch.cat(list(outputs), dim=-1)
        return joined.movedim(self.token_dim, 0)

    def with_own_pools(self) -> "Call":
        """The same call on copies of the pools."""
        return replace(self, pools={name: pool.clone() for name, pool in self.pools.items()})

    def with_own_tensors(self) -> "Call":
        """The same call on copies of everything that belongs to tokens or slots, or is a parameter."""
        own = {name: x.clone() if isinstance(x, Tensor) else x for name, x in self.parameters.items()}
        per_token = {name: x.clone() for name, x in self.per_token.items()}
        return replace(self.with_own_pools(), per_token=per_token, parameters=own)

    def part(self, rows: Tensor, sequences: Sequence[int], lengths: Sequence[int], *, read: int, source: str) -> "Call":
        """The same call for some rows of some sequences, which have read `read` more tokens than at the beginning.

        source: "src" or "dst", from where their memory comes.
        """
        chosen = torch.tensor(list(sequences), device=self.batch.src.device)
        src, dst = getattr(self.batch, source)[chosen].tolist(), self.batch.dst[chosen].tolist()
        return replace(
            self,
            per_token={name: x[rows] for name, x in self.per_token.items()},
            batch=Packed.of(src, lengths, dst=dst, device=self.batch.src.device),
            past=None if self.past is None else self.past[chosen] + read,
        )

    @property
    def lengths(self) -> list[int]:
        return self.batch.starts.diff().tolist()

    @property
    def num_bytes(self) -> int:
        """Bytes that the call has to move: operands, parameters and outputs once, states read and written."""
        tensors = [*self.per_token.values(), *(x for x in self.parameters.values() if isinstance(x, Tensor))]
        states = 2 * self.batch.src.numel() * sum(pool[0].numel() * pool.element_size() for pool in self.pools.values())
        return states + sum(x.numel() * x.element_size() for x in tensors)


@dataclass(frozen=True, slots=True)
class Draw:
    """Random tensors of one seed, the same on every device. dtype: of operands per token."""

    generator: torch.Generator
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, seed: int, dtype: torch.dtype, device: torch.device) -> "Draw":
        return cls(torch.Generator().manual_seed(seed), dtype, device)

    def parameter(self, *shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
        """Uniform, fp32."""
        return (torch.rand(*shape, generator=self.generator) * (high - low) + low).to(self.device)

    def operand(self, *shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
        """Uniform, in the dtype of operands."""
        return self.parameter(*shape, low=low, high=high).to(self.dtype)

    def log_decay(self, *shape: int) -> Tensor:
        """Of decays from e^-6 to nearly 1, many of them near 1; fp32."""
        return -6.0 * self.parameter(*shape, low=0.0) ** 6
