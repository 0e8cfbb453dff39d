"""Every error that a caller can meet, as one tree.

    OstinatoError
    ├── CheckpointError          the files of a model: missing, truncated, misshapen, of an unknown architecture
    │   └── UnsupportedModelError  readable, but a model that this version does not serve
    ├── TokenizerError           tokenizer files: missing or unusable
    ├── RequestError             what the caller asked for cannot be done; names the field
    │   └── TextNeedsTokenizerError  a text prompt, but the model was loaded without a tokenizer
    ├── CapacityError            the state pool or the weights do not fit into the memory given
    ├── QueueFullError           the waiting queue is at its bound; says when to come back
    ├── SnapshotError            a stored state cannot be gone on from here
    │   ├── SnapshotFormatError    no snapshot, a truncated or altered one, or one whose header lies
    │   ├── SnapshotValueError     it holds numbers that no model computes from: NaN or infinite
    │   ├── OtherModelError        it belongs to another model: other weights or another configuration
    │   ├── OtherTokenizerError    it was made with another tokenizer
    │   ├── OtherDTypeError        it was computed in another dtype
    │   └── OtherWindowError       it has a window, for which this engine has no memory
    ├── EngineStoppedError       the engine is draining or has stopped
    ├── StepError                an engine step failed for this request
    │   └── NotFiniteError         its logits or its state became NaN or infinite
    ├── SlowReaderError          a client took its tokens so slowly that too many waited for it
    └── StateStoreError          the state store cannot do what was asked
        ├── StateIdError           not an id
        ├── StateNotFoundError     no such state of this owner
        ├── StateDamagedError      the stored bytes are not the ones that were stored
        ├── StoreFullError         does not fit into a tier's budget
        ├── StateQuotaError        does not fit into what its owner may hold
        └── StoreUnavailableError  a tier cannot be read or written

`server/errors.py` maps each type to an HTTP status in one table. `CheckpointError` and `UnsupportedModelError` are
defined in `ostinato.models.errors`, because imports go one way, and are re-exported here so that there is one tree.
"""

from ostinato.models.errors import CheckpointError, OstinatoError, UnsupportedModelError

__all__ = [
    "CapacityError",
    "CheckpointError",
    "EngineStoppedError",
    "NotFiniteError",
    "OstinatoError",
    "OtherDTypeError",
    "OtherModelError",
    "OtherTokenizerError",
    "OtherWindowError",
    "QueueFullError",
    "RequestError",
    "SlowReaderError",
    "SnapshotError",
    "SnapshotFormatError",
    "SnapshotValueError",
    "StateDamagedError",
    "StateIdError",
    "StateNotFoundError",
    "StateQuotaError",
    "StateStoreError",
    "StepError",
    "StoreFullError",
    "StoreUnavailableError",
    "TextNeedsTokenizerError",
    "TokenizerError",
    "UnsupportedModelError",
]


class TokenizerError(OstinatoError):
    """Tokenizer files are missing, unreadable, or need code from the repository."""


class RequestError(OstinatoError):
    """A request that cannot be served as it stands. `field` names the request field at fault."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class TextNeedsTokenizerError(RequestError):
    """The request needs text to be tokenized or detokenized, but no tokenizer is loaded."""


class CapacityError(OstinatoError):
    """The weights, or the states asked for, do not fit into the memory given."""


class QueueFullError(OstinatoError):
    """The waiting queue is full. `retry_after` is the estimated wait in seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineStoppedError(OstinatoError):
    """The engine is draining or stopped and takes no new requests."""


class StepError(OstinatoError):
    """The engine step that this request was part of raised."""


class NotFiniteError(StepError):
    """The logits or the state of this request became NaN or infinite. Its state is gone; stored ones stay."""


class SlowReaderError(OstinatoError):
    """More of a request's answer waits to be taken than the server keeps for one client."""


class SnapshotError(OstinatoError):
    """A stored state cannot be gone on from here. Nothing was loaded."""


class SnapshotFormatError(SnapshotError):
    """The data is no snapshot, or was truncated or altered, or says of itself what is not so."""


class SnapshotValueError(SnapshotError):
    """The snapshot's state or logits hold NaN or infinite numbers."""


class OtherModelError(SnapshotError):
    """The snapshot was made by a model with other weights or another configuration."""


class OtherTokenizerError(SnapshotError):
    """The snapshot was made with another tokenizer, so its token ids mean other texts."""


class OtherDTypeError(SnapshotError):
    """The snapshot was computed in another dtype, so going on from it would not be exact."""


class OtherWindowError(SnapshotError):
    """The snapshot was made with a window, whose memory this engine does not have."""


class StateStoreError(OstinatoError):
    """The state store cannot do what was asked of it."""


class StateIdError(StateStoreError):
    """What was given as an id is none: an id is `st_` and 64 lower-case hexadecimal digits."""


class StateNotFoundError(StateStoreError):
    """This owner has no state with this id: it never existed, has expired, was evicted or deleted, or is another's."""


class StateDamagedError(StateStoreError):
    """A state's bytes are not the ones that were stored. They were moved aside and are never served."""


class StoreFullError(StateStoreError):
    """A state does not fit into a tier's budget, even if everything that may be evicted were. Nothing was evicted."""


class StateQuotaError(StateStoreError):
    """The owner of a state would hold more bytes of states than it may. Nothing was stored, and nothing evicted."""


class StoreUnavailableError(StateStoreError):
    """A tier cannot be read or written: disk full, read-only, connection refused. Names the tier and a remedy."""
