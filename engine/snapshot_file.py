"""Snapshots on disk: one safetensors file each, readable by any tool, and the same bytes for the same snapshot.

Tensors: `state.<name>` as the StateSpec names them, [layers, *shape]; `logits` [vocabulary] fp32; `tokens` [n] int32
unless private. The metadata has one entry, `ostinato`, whose value is the JSON of `Header`: safetensors writes several
in any order, and the file's hash is its name. Format: https://huggingface.co/docs/safetensors.

A lossy file has int8 in place of floating-point state tensors, and `scale.<name>`, one fp32 factor for each row (the
last dimension). It says so in its header.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ostinato.engine.errors import (
    OtherDTypeError,
    OtherModelError,
    OtherTokenizerError,
    OtherWindowError,
    SnapshotFormatError,
    SnapshotValueError,
)
from ostinato.engine.mitigation import Mitigation
from ostinato.engine.sampling_params import SamplingParams
from ostinato.engine.snapshot_header import (
    METADATA,
    Fingerprint,
    GenerationHeader,
    Header,
    needs_counts,
    read_counts,
    read_header,
    read_mitigation,
    read_params,
    write_params,
)
from ostinato.engine.snapshots import Snapshot, TokenLog
from ostinato.engine.state_pool import State, all_finite
from ostinato.engine.types import Generation
from ostinato.models.base import StateSpec, StateTensor

INT8_MAX = 127


@dataclass(frozen=True, slots=True)
class SnapshotFormat:
    """Reads and writes the snapshots of one model.

    Bytes of the same snapshot are the same in every process: tensors are in order of their names, JSON keys too.
    """

    fingerprint: Fingerprint
    spec: StateSpec
    vocab_size: int
    window: StateSpec | None = None  # what states with a window have besides, where this server has memory for it

    def encode(self, snapshot: Snapshot, *, lossy: bool = False) -> bytes:
        """The file. The snapshot has logits. lossy: floating-point state tensors as int8."""
        assert snapshot.state.logits is not None  # every snapshot that is to be stored has them
        tensors = {f"state.{name}": tensor.cpu().contiguous() for name, tensor in snapshot.state.tensors.items()}
        if lossy:
            tensors = _quantized(tensors)
        tensors["logits"] = snapshot.state.logits
        if snapshot.log.tokens is not None:
            tensors["tokens"] = torch.tensor(snapshot.log.tokens, dtype=torch.int32)
        header = self._header(snapshot, lossy=lossy)
        return save(
            tensors,
            {METADATA: json.dumps(header.model_dump(exclude_defaults=True), sort_keys=True, separators=(",", ":"))},
        )

    def decode(self, data: bytes) -> Snapshot:
        """The snapshot in a file, which may be anybody's upload.

        Raises:
            SnapshotFormatError: truncated, not safetensors, or header and tensors do not fit this model or each other.
            OtherModelError, OtherTokenizerError, OtherDTypeError: of another model.
            OtherWindowError: it has a window, for which there is no memory here.
            SnapshotValueError: a number is not finite.
        """
        header, tensors = read_header(data), _read_tensors(data)
        self._check_fingerprint(header.fingerprint)
        self._check_region(header)
        logits = _take(tensors, "logits", (self.vocab_size,), torch.float32)
        log = self._read_log(header, tensors)
        mitigation, params = read_mitigation(header.mitigation), read_params(header.params)
        state = {
            part.name: self._read_state(part.name, (part.layers, *part.shape), part.dtype, tensors, header.lossy)
            for part in (*self.spec.tensors, *self._window_of(mitigation))
        }
        if tensors:
            raise SnapshotFormatError(f"the snapshot holds tensors that the model has no place for: {sorted(tensors)}")
        for name, tensor in {**state, "logits": logits}.items():
            _check_finite(name, tensor)
        return Snapshot(
            state=State(state, header.tokens, logits),
            log=log,
            generation=_read_generation(header, log, params, self.vocab_size),
            parent=header.parent,
            params=params,
            seed=header.seed,
            open_turn=header.open_turn,
            initial=header.initial,
            region=header.region,
            mitigation=mitigation,
        )

    def _window_of(self, mitigation: Mitigation) -> tuple[StateTensor, ...]:
        if mitigation.window is None:
            return ()
        if self.window is None:
            raise OtherWindowError(
                f"the state was made with a window of {mitigation.window} tokens, for which this server has no memory; "
                "start it with --state-window-memory to go on from it"
            )
        return self.window.tensors

    def _header(self, snapshot: Snapshot, *, lossy: bool) -> Header:
        generation, params = snapshot.generation, snapshot.params
        counts = {str(i): n for i, n in sorted(generation.counts.items())}
        return Header(
            format=1,
            tokens=snapshot.log.length,
            digest=snapshot.log.digest,
            parent=snapshot.parent,
            model=self.fingerprint.digest,
            fingerprint=self.fingerprint,
            generation=GenerationHeader(
                tokens=generation.tokens,
                index=generation.index,
                held=generation.held,
                partial=generation.partial.hex(),
            ),
            counts=counts if needs_counts(snapshot.log, params) else None,
            params=None if params is None else write_params(params),
            seed=snapshot.seed,
            open_turn=snapshot.open_turn,
            initial=snapshot.initial,
            mitigation=snapshot.mitigation.asked or None,
            lossy="int8" if lossy else None,
            region=snapshot.region,
        )

    def _check_fingerprint(self, found: Fingerprint) -> None:
        own = self.fingerprint
        if (found.weights, found.config) != (own.weights, own.config):
            what = "weights" if found.weights != own.weights else "configuration"
            raise OtherModelError(f"the state belongs to another model: its {what} differs from that of the served one")
        if found.tokenizer != own.tokenizer:
            raise OtherTokenizerError("the state was made with another tokenizer than the served one")
        if (found.dtype, found.state_dtype) != (own.dtype, own.state_dtype):
            raise OtherDTypeError(
                f"the state was computed in {found.dtype} with a state in {found.state_dtype}, but {own.dtype} with "
                f"{own.state_dtype} is served; start the server with --dtype {found.dtype} to go on from it"
            )

    def _check_region(self, header: Header) -> None:
        length = self.spec.encoder_length
        if not min(length, 1) <= header.region <= min(length, header.tokens):
            raise SnapshotFormatError(
                f"the snapshot names an encoder region of {header.region} tokens; the model's has up to {length}, "
                f"and the snapshot has read {header.tokens}"
            )

    def _read_log(self, header: Header, tensors: dict[str, Tensor]) -> TokenLog:
        if "tokens" not in tensors:
            return TokenLog(header.tokens, header.digest, None)
        ids = _take(tensors, "tokens", (header.tokens,), torch.int32)
        if int(ids.min()) < 0 or int(ids.max()) >= self.vocab_size:
            raise SnapshotFormatError(f"the snapshot's token log holds ids outside of 0 to {self.vocab_size - 1}")
        log = TokenLog.of(tuple(ids.tolist()))
        if log.digest != header.digest:
            raise SnapshotFormatError("the snapshot's token log is not the one that its header names")
        return log

    def _read_state(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        tensors: dict[str, Tensor],
        lossy: str | None,
    ) -> Tensor:
        if lossy is None or not dtype.is_floating_point:
            return _take(tensors, f"state.{name}", shape, dtype)
        rows = _take(tensors, f"state.{name}", shape, torch.int8)
        scale = _take(tensors, f"scale.{name}", (*shape[:-1], 1), torch.float32)
        _check_finite(f"scale.{name}", scale)
        return (rows.float() * scale).to(dtype)


def _read_tensors(data: bytes) -> dict[str, Tensor]:
    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise SnapshotFormatError(f"the snapshot is truncated or damaged: {error}") from error


def _take(tensors: dict[str, Tensor], name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    tensor = tensors.pop(name, None)
    if tensor is None:
        raise SnapshotFormatError(f"the snapshot has no tensor {name!r}")
    if tuple(tensor.shape) != shape or tensor.dtype != dtype:
        raise SnapshotFormatError(
            f"the snapshot's tensor {name!r} is {tuple(tensor.shape)} {tensor.dtype}, the model's {shape} {dtype}"
        )
    return tensor


def _check_finite(name: str, tensor: Tensor) -> None:
    if not all_finite(tensor):
        raise SnapshotValueError(f"the snapshot's tensor {name!r} holds NaN or infinite numbers")


def _quantized(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rows as int8, rounded to the nearest multiple of a scale that takes the largest to 127."""
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            result[name] = tensor
            continue
        scale = tensor.float().abs().amax(-1, keepdim=True) / INT8_MAX
        rows = (tensor.float() / scale.clamp(min=torch.finfo(torch.float32).tiny)).round()
        result[name] = rows.to(torch.int8)
        result[name.replace("state.", "scale.", 1)] = scale
    return result


def _read_generation(header: Header, log: TokenLog, params: SamplingParams | None, vocab_size: int) -> Generation:
    read, counts = header.generation, header.counts
    if read.tokens > header.tokens:
        raise SnapshotFormatError("the snapshot's answer is longer than its token log")
    if (counts is not None) != needs_counts(log, params):
        raise SnapshotFormatError(
            "the snapshot counts tokens where it need not, or does not where its penalties need it"
        )
    if log.tokens is not None:
        found: Mapping[int, int] = Counter(log.tokens[log.length - read.tokens :])
    else:
        found = read_counts(counts or {}, read.tokens, vocab_size)
    return Generation(read.tokens, dict(found), read.index, read.held, bytes.fromhex(read.partial))
