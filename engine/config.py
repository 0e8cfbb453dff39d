"""How an engine is set up. One value, complete after construction, never changed later."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from ostinato.engine.errors import RequestError
from ostinato.engine.guard import REPORTING, GuardOptions
from ostinato.engine.mitigation import UNTOUCHED, Mitigation

DTypeName = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Everything that loading a model and serving it depends on.

    model: folder, `.pth` file or hub id. tokenizer: likewise, for checkpoints without one. dtype: of the weights in
    memory; `auto` takes the checkpoint's. state_memory: bytes for the state pool; None takes a quarter of what is
    free once the weights are loaded. max_batch: slots, which is how many sequences run at once; None takes what
    state_memory holds, at most 256. max_step_tokens: tokens read in one step, which bounds how long a prompt delays
    the sequences that are being decoded. max_queue: sequences that may wait for a slot. threads: of the CPU; None
    leaves PyTorch's choice. batch_invariant: a token has the same bits whatever its batch and its split, which
    costs speed on a GPU; on the CPU it is always so. prefix_cache: bytes of host memory for states that are found
    by their tokens; None takes an eighth of what is free, 0 keeps none. cuda_graphs: whether decode steps are
    captured as such, on a GPU. attention_window: tokens that layers of full attention hold in models that have
    such; None leaves the model's default. initial_states: files of tuned initial states by name; the one named ""
    is where every sequence starts. guard: how states are guarded where the request does not say. mitigation: likewise,
    what is done against their collapse. window_memory: whether every slot has a second state, for windows; a
    mitigation that has one sees to it by itself.

    Raises:
        RequestError: a value is out of range; `field` names it.
    """

    model: str
    tokenizer: str | None = None
    device: str = "cpu"
    dtype: DTypeName = "auto"
    state_memory: int | None = None
    max_batch: int | None = None
    max_step_tokens: int = 512
    max_queue: int = 256
    threads: int | None = None
    prefix_cache: int | None = None
    batch_invariant: bool = False
    cuda_graphs: bool = True
    attention_window: int | None = None
    initial_states: Mapping[str, str] = field(default_factory=dict)
    guard: GuardOptions = REPORTING
    mitigation: Mitigation = UNTOUCHED
    window_memory: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in get_args(DTypeName):
            raise RequestError(f"dtype must be one of {', '.join(get_args(DTypeName))}, got {self.dtype!r}", "dtype")
        for name, low in (
            ("state_memory", 1),
            ("max_batch", 1),
            ("max_step_tokens", 2),
            ("max_queue", 0),
            ("prefix_cache", 0),
            ("attention_window", 1),
            ("threads", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < low:
                raise RequestError(f"{name} must be at least {low}, got {value}", name)
        if self.max_batch is not None and self.max_batch >= self.max_step_tokens:
            raise RequestError(
                f"max_step_tokens ({self.max_step_tokens}) must be larger than max_batch ({self.max_batch}), "
                "so that prompts advance while all slots decode",
                "max_step_tokens",
            )
