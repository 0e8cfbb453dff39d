"""The recurrence's forms with random operands, and a comparison of the GPU's launcher with the reference."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.kernels.gpu.recurrence import recurrence
from ostinato.kernels.packed import Packed
from ostinato.kernels.recurrence import recurrence_ref
from tests.kernels.random_batches import relative_error, uniform

SLOTS = 10
# Unordered sources, one of them repeated; a fresh sequence; one that keeps nothing; padding. Destinations in place and
# elsewhere.
SRC, DST = (7, 3, -1, 3, 0, -1), (7, 5, 9, 2, -1, -1)

# Heads, values, keys of each form: mostly no powers of two. What takes long to interpret is small.
SIZES = {
    "mamba": (1, 37, 16),
    "mamba2": (4, 20, 24),
    "retnet": (2, 33, 72),
    "linear": (2, 17, 19),
    "gla": (2, 20, 40),
    "rwkv5": (1, 16, 16),
    "rwkv6": (2, 24, 24),
    "delta": (1, 20, 56),
    "gated-delta": (2, 20, 40),
    "kda": (1, 20, 24),
    "scalar-ab": (1, 20, 24),
    "rwkv7": (1, 16, 16),
}
CHUNKED = [form for form in SIZES if form != "mamba"]


def operands(
    form: str, tokens: int, generator: torch.Generator, dtype: torch.dtype
) -> dict[str, Tensor | bool | float]:
    """A call's q, k, v and what the form needs, as models lay them out. Parameters and decays are fp32."""
    heads, values, keys = SIZES[form]
    groups = max(1, heads // 2) if form in ("mamba", "mamba2", "gated-delta") else heads

    def per_token(*shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
        return uniform(generator, tokens, *shape, low=low, high=high).to(dtype)

    joined = per_token(groups, 2 * keys)
    given: dict[str, Tensor | bool | float] = {"q": joined[..., :keys], "k": joined[..., keys:]}
    given["v"] = per_token(heads * values + 5)[:, 5:].unflatten(1, (heads, values))
    if form in ("mamba", "mamba2"):
        channel = (values,) if form == "mamba" else ()
        given["step"] = per_token(heads, *channel, low=-8.0)
        given["step_bias"] = uniform(generator, heads, *channel)
        given["rate"] = -uniform(generator, heads, *((values, keys) if channel else ()), low=1e-3, high=16.0)
        given["skip"] = uniform(generator, heads, *channel)
    if form in ("mamba", "gated-delta"):
        given["gate"] = per_token(heads, values, low=-4.0, high=4.0)
    if form in ("retnet", "gated-delta", "scalar-ab"):
        given |= {"log_decay": log_decays(form, generator, tokens, heads), "scale": keys**-0.5}
    if form in ("gla", "rwkv5", "rwkv6", "kda", "rwkv7"):
        given["log_decay"] = log_decays(form, generator, tokens, heads, keys)
    if form in ("rwkv5", "rwkv6"):
        given["bonus"] = uniform(generator, heads, keys)
    if form in ("delta", "gated-delta", "kda"):
        given |= {"beta": per_token(heads, low=0.0), "normalize": True}
    if form in ("scalar-ab", "rwkv7"):
        unit = F.normalize(uniform(generator, tokens, heads, keys), dim=-1)
        given |= {"a": (-unit).to(dtype), "b": (unit * uniform(generator, tokens, heads, keys, low=0.0)).to(dtype)}
    return given


def log_decays(form: str, generator: torch.Generator, tokens: int, *shape: int) -> Tensor:
    """From nearly 0 to nearly 1, and now and then exactly 0, behind which a mild decay must not be lost."""
    if form in ("retnet", "rwkv5"):
        return F.logsigmoid(uniform(generator, *shape, low=-2.0, high=8.0)).expand(tokens, *shape)
    logs = F.logsigmoid(uniform(generator, tokens, *shape, low=-12.0, high=12.0))
    chance = uniform(generator, tokens, *shape, low=0.0)
    return logs.masked_fill(chance < 0.02, -1e4).masked_fill(chance > 0.98, -torch.inf)


def errors(
    form: str, lengths: tuple[int, ...], seed: int, dtype: torch.dtype, state_dtype: torch.dtype = torch.float32
) -> tuple[float, float]:
    """Relative errors of y and of the states written; asserts that other slots keep their bits."""
    generator = torch.Generator().manual_seed(seed)
    heads, values, keys = SIZES[form]
    given = operands(form, sum(lengths), generator, dtype)
    batch = Packed.of(SRC, lengths, dst=DST)
    pool = uniform(generator, SLOTS, heads, values, keys).to(state_dtype)
    pool[[slot for slot in range(SLOTS) if slot not in SRC]] = torch.nan
    found_pool, expected_pool = pool.clone(), pool.clone()
    expected = recurrence_ref(**given, state=expected_pool, **places(batch))
    with poisoned_memory():
        found = recurrence(**given, state=found_pool, **places(batch))
    written = [slot for slot in DST if slot >= 0]
    others = [slot for slot in range(SLOTS) if slot not in written]
    assert torch.equal(found_pool[others].view(torch.uint8), pool[others].view(torch.uint8))
    return relative_error(found, expected), relative_error(found_pool[written], expected_pool[written])


def places(batch: Packed) -> dict[str, Tensor | int]:
    return {"src": batch.src, "dst": batch.dst, "starts": batch.starts, "longest": batch.longest}


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Memory that nothing has been written to reads as NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
