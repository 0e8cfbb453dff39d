"""The part of a snapshot file that is no tensor, checked as strictly as a stranger's upload needs it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ostinato.engine.errors import RequestError, SnapshotFormatError
from ostinato.engine.mitigation import UNTOUCHED, Mitigation
from ostinato.engine.sampling_params import SamplingParams
from ostinato.engine.snapshots import TokenLog

ID_PATTERN = r"^st_[0-9a-f]{64}$"
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
METADATA = "ostinato"
_COUNTED = re.compile(r"[0-9]{1,10}")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Fingerprint(_Strict):
    """Whose snapshot it is. weights, config, tokenizer: SHA-256; dtypes: of the projections and of the state."""

    weights: Hash
    config: Hash
    tokenizer: Hash | None
    dtype: str
    state_dtype: str

    @property
    def digest(self) -> str:
        """All of it in one word."""
        return "fp_" + hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:32]


class GenerationHeader(_Strict):
    """`Generation`, but for the counts, which the log tells. partial: in hex."""

    tokens: Count
    index: Count
    held: str
    partial: Annotated[str, Field(pattern=r"^([0-9a-f]{2}){0,3}$")]


class Header(_Strict):
    """All of a snapshot that is no tensor.

    tokens, digest: of the token log, see `TokenLog`. fingerprint, and model in one word: of who made it. counts: of
    the answer's tokens, for a private log whose request had penalties on them. params: the request's sampling
    parameters. region: see `Snapshot`, and mitigation: what of it was asked for; each is left out where it is nothing.
    """

    format: Literal[1]
    tokens: Annotated[int, Field(ge=1)]
    digest: Hash
    parent: Annotated[str, Field(pattern=ID_PATTERN)] | None
    model: str
    fingerprint: Fingerprint
    generation: GenerationHeader
    counts: dict[str, Count] | None
    params: dict[str, Any] | None
    seed: int | None
    open_turn: bool
    initial: Hash | None
    mitigation: dict[str, float | int] | None = Field(None, exclude_if=lambda value: value is None)
    lossy: Literal["int8"] | None
    region: Count = 0


def read_header(data: bytes) -> Header:
    """The header of a snapshot file, without its tensors. Raises SnapshotFormatError."""
    try:
        length = int.from_bytes(data[:8], "little")
        entries = json.loads(bytes(data[8 : 8 + length]))
        return Header.model_validate_json(entries["__metadata__"][METADATA])
    except (ValueError, KeyError, TypeError, RecursionError, ValidationError) as error:
        raise SnapshotFormatError(f"this is no snapshot: its header cannot be read ({type(error).__name__})") from error


def read_mitigation(entries: dict[str, float | int] | None) -> Mitigation:
    """Raises SnapshotFormatError: there is no such mitigation."""
    try:
        return UNTOUCHED if entries is None else Mitigation(**entries)  # type: ignore[arg-type]  # checked when made
    except (TypeError, RequestError) as error:
        raise SnapshotFormatError(f"the snapshot's mitigation cannot be read: {error}") from error


def write_params(params: SamplingParams) -> dict[str, Any]:
    entries = asdict(params)
    entries["logit_bias"] = {str(i): bias for i, bias in sorted(params.logit_bias.items())}
    return entries | {"stop": list(params.stop), "stop_token_ids": sorted(params.stop_token_ids)}


def read_params(entries: dict[str, Any] | None) -> SamplingParams | None:
    if entries is None:
        return None
    try:
        entries = {
            **entries,
            "logit_bias": {int(i): float(bias) for i, bias in entries["logit_bias"].items()},
            "stop": tuple(entries["stop"]),
            "stop_token_ids": frozenset(entries["stop_token_ids"]),
        }
        return SamplingParams(**entries)
    except (TypeError, ValueError, OverflowError, KeyError, AttributeError, RequestError) as error:
        raise SnapshotFormatError(f"the snapshot's sampling parameters cannot be read: {error}") from error


def needs_counts(log: TokenLog, params: SamplingParams | None) -> bool:
    """Whether there are penalties on tokens that the log does not tell."""
    return log.tokens is None and params is not None and bool(params.presence_penalty or params.frequency_penalty)


def read_counts(entries: Mapping[str, int], tokens: int, vocab_size: int) -> dict[int, int]:
    """Raises SnapshotFormatError: of no tokens of an answer of so many, or of a vocabulary of that size."""
    if not all(_COUNTED.fullmatch(i) and int(i) < vocab_size for i in entries):
        raise SnapshotFormatError(f"the snapshot counts tokens that are not among 0 to {vocab_size - 1}")
    if sum(entries.values()) > tokens:
        raise SnapshotFormatError(f"the snapshot counts more tokens than the {tokens} of its answer")
    return {int(i): n for i, n in entries.items()}
