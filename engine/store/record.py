"""What the state store knows about one state, and the names of its blobs.

    content/<sha256 of the content>.safetensors[.zst]     what was stored, once, however many records refer to it
    records/<owner>/<id>.json                             one small JSON object; `anonymous` stands for owner ""

Ids and owners become parts of paths and keys, so both are checked against their patterns first.
"""

import dataclasses
import hashlib
import json
import re
import secrets
from dataclasses import dataclass
from enum import Enum
from typing import Any

from ostinato.engine.errors import StateIdError
from ostinato.engine.store.blobs import Data

ANONYMOUS = "anonymous"
RECORDS = "records/"
CONTENT = "content/"
DAMAGED = "damaged/"
DELETED = "deleted/"
SUFFIXES = (".safetensors", ".safetensors.zst")

_ID = re.compile(r"st_[0-9a-f]{64}")
_OWNER = re.compile(r"([0-9a-f]{8,128})?")
_CONTENT_KEY = re.compile(r"content/([0-9a-f]{64})\.safetensors(\.zst)?")


@dataclass(frozen=True, slots=True)
class StateRecord:
    """One state of one owner. Everything that may change does so by writing the record anew.

    Attributes:
        id: `st_` and 64 hexadecimal digits: those of `content`, or digits of its own, as a fork has.
        content: SHA-256 of the content, as hexadecimal digits.
        owner: the hexadecimal id of whoever has an API key, or a hash of it; "" where there are no keys.
        parent: the id of the state that this one goes on from, which may be gone; None for a first one.
        tokens: how many tokens the state has read.
        bytes: of the content, before compression.
        created, used: seconds since 1970. `used` is kept to the minute on disk, exactly in memory.
        expires: seconds since 1970; None for never.
        labels: the owner's.
        pinned: never evicted.
        model: the fingerprint of the model.
        mark: the name of a checkpoint that the caller asked for, or None.
        lossy: whether the content is a lossy form of the state.
    """

    id: str
    content: str
    owner: str
    parent: str | None
    tokens: int
    bytes: int
    created: float
    used: float
    expires: float | None
    labels: tuple[str, ...]
    pinned: bool
    model: str
    mark: str | None
    lossy: bool

    @property
    def key(self) -> str:
        return record_key(self.owner, self.id)


class Unchanged(Enum):
    """The value of an argument that leaves a field as it is, where None means something else."""

    UNCHANGED = "unchanged"


UNCHANGED = Unchanged.UNCHANGED


def record_json(record: StateRecord) -> bytes:
    return json.dumps(dataclasses.asdict(record), indent=1).encode()


def parse_record(key: str, data: Data) -> StateRecord:
    """Reads a record's JSON.

    Raises:
        ValueError: it is no JSON, lacks a field or has one too many, has a wrong type or a number that cannot be, or
            belongs under another key.
    """
    try:
        fields = json.loads(bytes(data))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(fields, dict) or set(fields) != set(_TYPES):
        raise ValueError("a record has other fields")
    for name, types in _TYPES.items():
        # JSON writes 3.0 as 3.0, but other tools may write 3; a bool is an int to Python and not to us.
        if not isinstance(fields[name], types) or (isinstance(fields[name], bool) and bool not in types):
            raise ValueError(f"{name} is of the wrong type")
    if not all(isinstance(label, str) for label in fields["labels"]):
        raise ValueError("labels are no strings")
    _check_texts(key, fields)
    for name in _NUMBERS:
        # Compared before anything converts it: a long integer is no float. NaN compares false.
        if fields[name] is not None and not 0 <= fields[name] <= _LARGEST:
            raise ValueError(f"{name} is out of range")
    return StateRecord(**{**fields, "labels": tuple(fields["labels"])})


def _check_texts(key: str, fields: dict[str, Any]) -> None:
    if not re.fullmatch(r"[0-9a-f]{64}", fields["content"]):
        raise ValueError("content is no hash")
    if not _ID.fullmatch(fields["id"]) or not _OWNER.fullmatch(fields["owner"]):
        raise ValueError("id or owner is none")
    if key != f"{RECORDS}{fields['owner'] or ANONYMOUS}/{fields['id']}.json":
        raise ValueError("the record of another state")
    # JSON can express half of a surrogate pair, which no answer can carry: UnicodeEncodeError is a ValueError.
    for text in (fields["parent"], fields["model"], fields["mark"], *fields["labels"]):
        (text or "").encode()


_NUMBERS = ("tokens", "bytes", "created", "used", "expires")
_LARGEST = 2**53  # up to which floats are exact, and no count of bytes or seconds comes near it
_NUMBER: tuple[type, ...] = (int, float)
_OPTIONAL_TEXT: tuple[type, ...] = (str, type(None))
_TYPES: dict[str, tuple[type, ...]] = {
    "id": (str,),
    "content": (str,),
    "owner": (str,),
    "parent": _OPTIONAL_TEXT,
    "tokens": (int,),
    "bytes": (int,),
    "created": _NUMBER,
    "used": _NUMBER,
    "expires": (int, float, type(None)),
    "labels": (list,),
    "pinned": (bool,),
    "model": (str,),
    "mark": _OPTIONAL_TEXT,
    "lossy": (bool,),
}


def check_id(id: str) -> str:
    """Returns `id`. Raises StateIdError if it is none."""
    if not _ID.fullmatch(id):
        raise StateIdError(f"not the id of a state: {id[:80]!r}")
    return id


def check_owner(owner: str) -> str:
    """Returns `owner`. Raises ValueError if it is neither "" nor a hexadecimal hash."""
    if not _OWNER.fullmatch(owner):
        raise ValueError("an owner is a hexadecimal hash of 8 to 128 digits, or empty")
    return owner


def fork_id(parent: str, branch: int) -> str:
    """A new id for a fork: forks of one state share its content but not its id."""
    digits = hashlib.sha256(f"{parent} {branch} {secrets.token_hex(16)}".encode()).hexdigest()
    return f"st_{digits}"


def record_key(owner: str, id: str) -> str:
    return f"{owner_prefix(owner)}{check_id(id)}.json"


def owner_prefix(owner: str) -> str:
    return f"{RECORDS}{check_owner(owner) or ANONYMOUS}/"


def content_keys(digest: str) -> list[str]:
    """The keys that a content may lie under: a store may have changed its compression since."""
    return [f"{CONTENT}{digest}{suffix}" for suffix in SUFFIXES]


def content_digest(key: str) -> str | None:
    """The content's SHA-256 from its key, or None if the key is no content's."""
    match = _CONTENT_KEY.fullmatch(key)
    return match[1] if match else None
