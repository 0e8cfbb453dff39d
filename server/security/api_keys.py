"""API keys: what is kept of them, and how one is recognized.

A key is 256 random bits that Ostinato draws itself, so its SHA-256 cannot be turned back by guessing, and a slow hash
with a salt, which passwords need, would only cost time at every request. docs/security.md says more.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ostinato.engine.errors import OstinatoError

PREFIX = "ost_"
KEY_BYTES = 32
MIN_CHARACTERS = 32
"""Of a key that somebody else made: so many characters, drawn at random, are 128 bits even as hexadecimal digits."""

SINGLE_OWNER = hashlib.sha256(b"the owner of the single API key").hexdigest()
"""Of the states of `--api-key`, whatever the key is: a new one keeps the states of the old one."""

Positive = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}$")]
Owner = Annotated[str, Field(pattern=r"^[0-9a-f]{8,128}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

_USABLE = re.compile(r"[!-~]+")  # what an HTTP header carries unchanged, without spaces


class WeakKeyError(OstinatoError):
    """A key that somebody chose is too short to be safe, or cannot be sent in a header."""


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class KeyLimits(_Stored):
    """What one owner may do; None for no bound. state_bytes: held in the store (`engine/store/owner_budget.py`)."""

    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    concurrency: Positive | None = None
    state_bytes: Positive | None = None


class Secret(_Stored):
    """One key, hashed. Times in seconds since 1970; expires: None for never."""

    sha256: Digest
    created: float
    expires: float | None = None

    @property
    def fingerprint(self) -> str:
        """Enough to tell keys apart by, and useless for anything else."""
        return self.sha256[:8]

    def is_expired(self, now: float) -> bool:
        return self.expires is not None and self.expires <= now


class ApiKey(_Stored):
    """Whoever has one of these secrets. owner: of its states; neither the name nor any secret can be told from it.

    metrics: whether it may read /metrics, which speaks of everybody's requests.
    """

    name: Name
    owner: Owner
    secrets: tuple[Secret, ...]
    limits: KeyLimits = KeyLimits()
    metrics: bool = False


class KeyList(_Stored):
    """All keys of a server, as its file has them."""

    version: Literal[1] = 1
    keys: tuple[ApiKey, ...] = ()

    @model_validator(mode="after")
    def _no_doubles(self) -> KeyList:
        """Two names for one owner would mix their states and limits; one secret for two names has no answer."""
        for what, found in (
            ("name", [key.name for key in self.keys]),
            ("owner", [key.owner for key in self.keys]),
            ("secret", [secret.sha256 for key in self.keys for secret in key.secrets]),
        ):
            double = [item for item, count in Counter(found).items() if count > 1]
            if double:
                raise ValueError(f"the {what} {double[0]} is there twice")
        return self


def new_key() -> str:
    """A key nobody has seen: 256 random bits, as letters, digits, `-` and `_`."""
    return PREFIX + secrets.token_urlsafe(KEY_BYTES)


def new_owner() -> str:
    return secrets.token_hex(16)


def digest_of(key: str) -> str:
    """SHA-256 in hex. A header is latin-1; surrogates cannot occur there."""
    return hashlib.sha256(key.encode()).hexdigest()


def secret_of(key: str, expires: float | None = None) -> Secret:
    """What is kept of a key."""
    return Secret(sha256=digest_of(key), created=float(int(time.time())), expires=expires)


def single_key(key: str) -> ApiKey:
    """The one key of a server that has no file of them: without limits, and it may read the metrics.

    Raises:
        WeakKeyError: too short, or not printable ASCII.
    """
    if not _USABLE.fullmatch(key):
        raise WeakKeyError("an API key must be printable ASCII without spaces")
    if len(key) < MIN_CHARACTERS:
        raise WeakKeyError(
            f"an API key of {len(key)} characters can be guessed: at least {MIN_CHARACTERS} random ones are needed; "
            "`ostinato keys create` or `openssl rand -hex 32` makes one"
        )
    return ApiKey(name="default", owner=SINGLE_OWNER, secrets=(secret_of(key),), metrics=True)


class KeyRing:
    """Finds who a key belongs to. Immutable, so safe to share between threads."""

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        found = tuple(keys)
        self.by_owner = {key.owner: key for key in found}
        self._secrets = {secret.sha256: (key, secret) for key in found for secret in key.secrets}

    def find(self, presented: str) -> tuple[ApiKey, Secret] | None:
        """None for an unknown key; an expired one is found.

        What a look-up by digest could tell through its time is about the digest of the presented key, which nobody can
        steer; the digests are then compared in constant time.
        """
        digest = digest_of(presented)
        key, secret = self._secrets.get(digest, (None, None))
        same = hmac.compare_digest(digest, "" if secret is None else secret.sha256)
        return (key, secret) if same and key is not None and secret is not None else None
