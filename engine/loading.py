"""From an EngineConfig to something that runs: checkpoint, model, tokenizer, state pool, engine."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from ostinato.engine.config import EngineConfig
from ostinato.engine.engine import Engine
from ostinato.engine.errors import CapacityError, RequestError
from ostinato.engine.graphs import CUDACapture
from ostinato.engine.guard import REPORTING, Guard, GuardOptions
from ostinato.engine.info import ModelInfo
from ostinato.engine.initial_states import InitialState, read_initial_state
from ostinato.engine.prefix_cache import PrefixCache
from ostinato.engine.runner import Runner
from ostinato.engine.sampler import Sampler
from ostinato.engine.scheduler import Scheduler
from ostinato.engine.service import Service
from ostinato.engine.snapshot_file import SnapshotFormat
from ostinato.engine.snapshot_header import Fingerprint
from ostinato.engine.state_pool import StatePool
from ostinato.engine.text.tokenizer import Tokenizer, find_tokenizer, load_tokenizer, resolve_eos
from ostinato.kernels import dispatch, tape
from ostinato.kernels.allocator import keep_freed_memory
from ostinato.models.base import Model, StateSpec
from ostinato.models.checkpoint import Checkpoint, Progress, open_checkpoint
from ostinato.models.fingerprint import config_fingerprint, weights_fingerprint
from ostinato.models.recurrent_memory import recurrent_tensors, window_spec
from ostinato.models.registry import load_model

ORIGINAL_RWKV = {"eos_token_id": 0}  # what RWKV's `.pth` files, which have no config, mean in either vocabulary
MOST_SLOTS = 256  # unless max_batch says otherwise
CGROUP = Path("/sys/fs/cgroup")
STATE_SHARE = 0.25  # of the memory that is free once the weights are loaded
CACHE_SHARE = 0.125  # of what is free once the state pool is there as well


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An engine ready to step, and what belongs to it."""

    engine: Engine
    info: ModelInfo
    tokenizer: Tokenizer | None
    snapshots: SnapshotFormat
    initial_states: Mapping[str, InitialState]
    guard: GuardOptions = REPORTING


def load_engine(config: EngineConfig, progress: Progress | None = None) -> LoadedEngine:
    """Loads everything. Blocks for as long as reading the weights takes.

    Raises:
        CheckpointError, UnsupportedModelError, TokenizerError: see `ostinato.engine.errors`.
        CapacityError: not even one state fits.
        RequestError: the device or the kernels asked for cannot be used.
    """
    device = _device(config)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    _prepare_kernels(device)
    checkpoint = open_checkpoint(config.model, progress=progress)
    checkpoint.attention_window = config.attention_window
    try:
        tokenizer = load_tokenizer(config.tokenizer) if config.tokenizer else find_tokenizer(checkpoint.folder)
        eos = resolve_eos(checkpoint.config or ORIGINAL_RWKV, checkpoint.generation_config, tokenizer)
        dtype = None if config.dtype == "auto" else getattr(torch, config.dtype)
        _check_weights_fit(checkpoint, dtype, device)
        weights, settings = weights_fingerprint(checkpoint), config_fingerprint(checkpoint)
    except BaseException:
        checkpoint.release()
        raise
    model = load_model(checkpoint, config.device, dtype)
    if device.type == "cpu":
        keep_freed_memory()
    if config.attention_window is not None and checkpoint.held_window is None:
        raise RequestError(f"{model.family} has no layers of full attention, so no window to set", "attention_window")
    window = _window(config, model)
    each = model.state_spec.bytes_per_state + (0 if window is None else window.bytes_per_state)
    info = ModelInfo(
        model=config.model,
        architecture=model.architecture,
        family=model.family,
        vocab_size=model.vocab_size,
        dtype=str(model.dtype).removeprefix("torch."),
        state_dtype=str(model.state_spec.dtype).removeprefix("torch."),
        bytes_per_state=each,
        slots=_num_slots(config, each, device),
        weight_bytes=model.weight_bytes,
        matmul_params=model.matmul_params,
        head_params=model.head_params,
        batch_invariant=_batch_invariant(config, model, device),
        attention_window=checkpoint.held_window,
        eos_token_ids=eos,
        encoder_length=model.state_spec.encoder_length,
        device=device.type,
        kernels=dispatch.backend(device.type),
        window_memory=window is not None,
        mitigation=config.mitigation,
    )
    config.mitigation.check(info)
    scheduler = Scheduler(info.slots, config.max_step_tokens, config.max_queue, info.encoder_length)
    runner = _runner(config, model, StatePool(model.state_spec, info.slots, device, window))
    fingerprint = Fingerprint(
        weights=weights,
        config=settings,
        tokenizer=None if tokenizer is None else tokenizer.fingerprint,
        dtype=info.dtype,
        state_dtype=info.state_dtype,
    )
    guard = Guard(runner) if recurrent_tensors(model.state_spec) else None
    engine = Engine(scheduler, runner, Sampler(eos), eos, PrefixCache(_cache_budget(config)), guard)
    snapshots = SnapshotFormat(fingerprint, model.state_spec, info.vocab_size, window)
    initial = {name: read_initial_state(path, model) for name, path in config.initial_states.items()}
    return LoadedEngine(engine, info, tokenizer, snapshots, initial, config.guard)


def load_service(config: EngineConfig, progress: Progress | None = None) -> Service:
    """`load_engine`, behind the async face. Raises the same errors."""
    loaded = load_engine(config, progress)
    states = (loaded.snapshots, loaded.initial_states)
    return Service(loaded.engine, loaded.info, loaded.tokenizer, *states, loaded.guard)


def _device(config: EngineConfig) -> torch.device:
    try:
        device = torch.device(config.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RequestError(
            f"device {config.device!r} cannot be used: {str(error).splitlines()[0]}", "device"
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise RequestError(f"device {config.device!r} cannot be used: only cpu and cuda can", "device")
    return device


def _prepare_kernels(device: torch.device) -> None:
    """Before anything is loaded: kernels that cannot run should not cost a minute."""
    try:
        dispatch.backend(device.type)
    except dispatch.BackendError as error:
        raise RequestError(str(error), "device") from error


def _batch_invariant(config: EngineConfig, model: Model, device: torch.device) -> bool:
    invariant = dispatch.batch_invariant(device, model.dtype, config.batch_invariant)
    if config.batch_invariant and not invariant:
        raise RequestError(
            f"batch_invariant cannot be had: {dispatch.backend(device.type)} kernels run on {device.type} here, and "
            f"projections in {str(model.dtype).removeprefix('torch.')} depend on the batch",
            "batch_invariant",
        )
    return invariant


def _window(config: EngineConfig, model: Model) -> StateSpec | None:
    """What slots have for windows. Raises RequestError: the family has no windows."""
    if not config.window_memory and config.mitigation.window is None:
        return None
    try:
        return window_spec(model.family, model.state_spec)
    except ValueError as error:
        raise RequestError(f"window_memory: {error}", "window_memory") from error


def _runner(config: EngineConfig, model: Model, pool: StatePool) -> Runner:
    device = torch.device(config.device)
    capture = CUDACapture() if config.cuda_graphs and dispatch.can_capture(device) else None
    record = tape.record if dispatch.can_record(device) else None
    try:
        return Runner(model, pool, device, batch_invariant=config.batch_invariant, capture=capture, record=record)
    except torch.OutOfMemoryError as error:
        raise CapacityError(
            f"no memory is left to capture decode steps of up to {pool.num_slots} sequences on {device}: "
            "lower state_memory or max_batch, or switch cuda_graphs off"
        ) from error


def _check_weights_fit(checkpoint: Checkpoint, dtype: torch.dtype | None, device: torch.device) -> None:
    scale = 1.0 if dtype is None else dtype.itemsize / checkpoint.dtype.itemsize
    needed, free = int(checkpoint.num_bytes * scale), _free_memory(device)
    if needed > free:
        raise CapacityError(
            f"the weights need {needed} bytes, but only {free} are free on {device}: "
            "choose a smaller dtype, a smaller model or a larger device"
        )


def _num_slots(config: EngineConfig, each: int, device: torch.device) -> int:
    """How many states of `each` bytes fit, at most as many as asked for and fewer than the token budget."""
    free = _free_memory(device)
    memory = config.state_memory or int(free * STATE_SHARE)
    wanted = config.max_batch or min(MOST_SLOTS, config.max_step_tokens - 1)
    fit = min(memory, free) // each
    if fit < (config.max_batch or 1):
        raise CapacityError(
            f"{config.max_batch or 1} states of {each} bytes do not fit into {min(memory, free)} bytes: "
            "raise state_memory, lower max_batch or take a smaller model"
        )
    return int(min(wanted, fit))


def _cache_budget(config: EngineConfig) -> int:
    """Of host memory, wherever the model is. Raises CapacityError: there is not so much."""
    free = _free_memory(torch.device("cpu"))
    if config.prefix_cache is None:
        return int(free * CACHE_SHARE)
    if config.prefix_cache > free:
        raise CapacityError(
            f"a prefix cache of {config.prefix_cache} bytes does not fit into {free}: lower prefix_cache"
        )
    return config.prefix_cache


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(int(psutil.virtual_memory().available), _free_in_container())


def _free_in_container() -> int:
    """What the control group of a container leaves (Linux, cgroup v2); without a limit, any amount."""
    try:
        limit, used = (int((CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # no control group, or `max`, which is no limit
        return sys.maxsize
    return max(0, limit - used)
