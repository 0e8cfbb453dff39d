"""What an engine tells about itself: once, and while it runs."""

from dataclasses import dataclass, field

from ostinato.engine.events import Reuse
from ostinato.engine.guard import GuardStats
from ostinato.engine.mitigation import UNTOUCHED, Mitigation
from ostinato.engine.step_meter import StepMeter


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is served, and what it costs. Sizes in bytes; parameters as in `ostinato.models.base.Model`.

    batch_invariant: a token has the same bits whatever its batch and its split. attention_window: tokens that layers of
    full attention hold, up to which they are exact; None for models without such layers. encoder_length: see
    `ostinato.models.base.StateSpec`. kernels: the back end that runs on the device, see `ostinato.kernels.dispatch`.
    window_memory: whether there is a second state for each slot, for windows; bytes_per_state has it then. mitigation:
    of requests that name none.
    """

    model: str
    architecture: str
    family: str
    vocab_size: int
    dtype: str
    state_dtype: str
    bytes_per_state: int
    slots: int
    weight_bytes: int
    matmul_params: int
    head_params: int
    batch_invariant: bool
    attention_window: int | None
    eos_token_ids: frozenset[int]
    encoder_length: int = 0
    device: str = "cpu"
    kernels: str = "reference"
    window_memory: bool = False
    mitigation: Mitigation = UNTOUCHED


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Counters since the start, and what is going on now.

    parked: sequences that gave their slot to a more urgent one. prompt_tokens: of accepted requests; read_tokens: that
    the model has read, prompts and answers; reused_tokens: that did not have to be read, since a state had been kept;
    reuse: sequences by where they began. cache: the prefix cache. meter: what steps cost. guard: what was seen of the
    states themselves.
    """

    slots: int
    slots_used: int
    running: int
    waiting: int
    max_queue: int
    prompt_tokens_total: int
    generated_tokens_total: int
    steps_total: int
    step_seconds_total: float
    finished: dict[str, int]  # sequences by finish reason
    parked: int
    read_tokens_total: int
    reused_tokens_total: int
    reuse: dict[Reuse, int]
    cache_bytes: int
    cache_budget: int
    cache_states: int
    cache_evictions_total: int
    meter: StepMeter  # goes on counting
    guard: GuardStats = field(default_factory=GuardStats)
