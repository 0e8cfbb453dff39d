"""Blobs as strings in a Redis server, through redis-py.

    ostinato:blob:<key>        the bytes
    ostinato:index:<folder>    a hash: key -> "<size> <modified> <version>", for every key of one top-level folder
    ostinato:lock              held for a moment by whoever deletes

Bytes and index line change in one transaction. How durable they are is the server's setting (`appendonly yes`). It must
not evict by itself (`maxmemory-policy noeviction`, the default): the state store has its own budget and rule.
"""

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import redis
from redis.exceptions import ConnectionError as NoConnection
from redis.exceptions import LockError, OutOfMemoryError, ReadOnlyError, RedisError, WatchError
from redis.exceptions import TimeoutError as NoAnswer

from ostinato.engine.errors import StoreUnavailableError
from ostinato.engine.store.blobs import BlobInfo, Data, check_key

if TYPE_CHECKING:
    from redis.client import Pipeline

_PREFIX = "ostinato:"
_LONGEST_VALUE = 512 << 20
_TIMEOUT = 30.0
_LOCK_SECONDS = 20.0
_POLL_SECONDS = 0.005


class RedisBlobs:
    """`url` is `redis://[user:password@]host[:port][/database]`, `rediss://...` (TLS) or `unix://path`."""

    def __init__(self, url: str) -> None:
        """Raises:
        StoreUnavailableError: no server answers there.
        """
        # Without `decode_responses` every answer is bytes; its annotations also allow for text.
        self._client = redis.Redis.from_url(url, socket_timeout=_TIMEOUT, socket_connect_timeout=5.0)
        self._name = _without_password(url)
        with self._errors():
            self._client.ping()

    @property
    def name(self) -> str:
        return self._name

    @property
    def grace(self) -> float:
        return 0.0

    def put(self, key: str, data: Data) -> None:
        self._check_size(data)
        with self._errors(), self._client.pipeline(transaction=True) as pipeline:
            _queue_write(pipeline, key, data)
            pipeline.execute()

    def get(self, key: str) -> Data | None:
        with self._errors():
            return cast("bytes | None", self._client.get(_blob(key)))

    def get_version(self, key: str) -> tuple[Data, str] | None:
        with self._errors(), self._client.pipeline(transaction=True) as pipeline:
            pipeline.get(_blob(key))
            pipeline.hget(_index(key), key)
            data, line = pipeline.execute()
        return None if data is None or line is None else (data, _info(key, line).version)

    def replace(self, key: str, data: Data, version: str) -> bool:
        self._check_size(data)
        with self._errors(), self._client.pipeline(transaction=True) as pipeline:
            try:
                pipeline.watch(_blob(key), _index(key))
                line = pipeline.immediate_execute_command("HGET", _index(key), key)
                if line is None or _info(key, line).version != version:
                    return False
                pipeline.multi()
                _queue_write(pipeline, key, data)
                pipeline.execute()
            except WatchError:
                return False
        return True

    def stat(self, key: str) -> BlobInfo | None:
        with self._errors():
            line = cast("bytes | None", self._client.hget(_index(key), key))
        return None if line is None else _info(key, line)

    def delete(self, key: str) -> None:
        with self._errors(), self._client.pipeline(transaction=True) as pipeline:
            pipeline.delete(_blob(key))
            pipeline.hdel(_index(key), key)
            pipeline.execute()

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        with self._errors():
            lines = cast("dict[bytes, bytes]", self._client.hgetall(_index(prefix.rstrip("/"))))
        found = [_info(key.decode(), line) for key, line in lines.items()]
        return (info for info in found if info.key.startswith(prefix))

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        lock = self._client.lock(
            f"{_PREFIX}lock", timeout=_LOCK_SECONDS, sleep=_POLL_SECONDS, blocking_timeout=2 * _LOCK_SECONDS
        )
        with self._errors():
            if not lock.acquire():
                raise StoreUnavailableError(f"{self.name}: another server has held the lock for too long: try again")
        try:
            yield
        finally:
            with self._errors():
                try:
                    lock.release()
                except LockError as error:
                    message = f"{self.name}: the lock ran out after {_LOCK_SECONDS:g} s: the server is too slow"
                    raise StoreUnavailableError(message) from error

    def _check_size(self, data: Data) -> None:
        if memoryview(data).nbytes > _LONGEST_VALUE:
            message = f"{self.name}: Redis takes at most 512 MiB in one value: choose a folder or an object store"
            raise StoreUnavailableError(message)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except RedisError as error:
            raise StoreUnavailableError(f"{self.name}: {_remedy(error)}") from error


def _remedy(error: RedisError) -> str:
    if isinstance(error, OutOfMemoryError):
        return "the server is out of memory: raise its maxmemory, or give the store a smaller budget"
    if isinstance(error, ReadOnlyError):
        return "the server is a read-only replica: name the primary"
    if isinstance(error, NoAnswer | NoConnection):
        return f"no answer: is the server running, and is the address right? ({error})"
    return str(error)


def _queue_write(pipeline: "Pipeline", key: str, data: Data) -> None:
    line = f"{memoryview(data).nbytes} {time.time()!r} {uuid.uuid4().hex}"
    pipeline.set(_blob(key), data)
    pipeline.hset(_index(key), key, line)


def _blob(key: str) -> str:
    return f"{_PREFIX}blob:{check_key(key)}"


def _index(key: str) -> str:
    return f"{_PREFIX}index:{check_key(key).partition('/')[0]}"


def _info(key: str, line: bytes) -> BlobInfo:
    size, modified, version = line.decode().split(" ")
    return BlobInfo(key, int(size), float(modified), version)


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
