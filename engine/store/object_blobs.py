"""Blobs as objects in S3, Google Cloud Storage or Azure, and whatever speaks their protocols, through obstore.

Endpoint, region and credentials come from each service's usual environment variables (`AWS_ENDPOINT_URL`,
`AWS_ACCESS_KEY_ID`, `GOOGLE_APPLICATION_CREDENTIALS`, `AZURE_STORAGE_ACCOUNT_NAME` ...). The service must be strongly
consistent and know conditional writes (If-Match), as those three are and do.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import BaseError, PreconditionError
from obstore.store import from_url

from ostinato.engine.errors import StoreUnavailableError
from ostinato.engine.store.blobs import BlobInfo, Data, check_key, is_key

if TYPE_CHECKING:
    from obstore import ObjectMeta, UpdateVersion

GRACE_SECONDS = 60.0
_ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT")


class ObjectBlobs:
    """`url` is `s3://bucket[/folder]`, `gs://bucket[/folder]` or `az://container[/folder]`.

    There is no lock across processes here, hence `grace`, in seconds.
    """

    def __init__(self, url: str, grace: float = GRACE_SECONDS) -> None:
        """Raises:
        StoreUnavailableError: the bucket does not answer, or the credentials do not open it.
        """
        self._name = url
        self._grace = grace
        self._lock = threading.RLock()
        with self._errors():
            self._store = from_url(
                url,
                client_options={
                    "allow_http": any(os.environ.get(name, "").startswith("http://") for name in _ENDPOINTS),
                    "connect_timeout": timedelta(seconds=5),
                    "timeout": timedelta(minutes=10),
                },
                retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=15)},
            )

    @property
    def name(self) -> str:
        return self._name

    @property
    def grace(self) -> float:
        return self._grace

    def put(self, key: str, data: Data) -> None:
        with self._errors():
            # One request: an upload in parts that is cut off would leave parts that cost money and are never listed.
            obstore.put(self._store, check_key(key), data, use_multipart=False)

    def get(self, key: str) -> Data | None:
        found = self.get_version(key)
        return None if found is None else found[0]

    def get_version(self, key: str) -> tuple[Data, str] | None:
        with self._errors():
            try:
                result = obstore.get(self._store, check_key(key))
                return memoryview(result.bytes()), _version(result.meta)
            except FileNotFoundError:
                return None

    def replace(self, key: str, data: Data, version: str) -> bool:
        e_tag, _, generation = version.partition(" ")
        mode: UpdateVersion = {}
        if e_tag:
            mode["e_tag"] = e_tag
        if generation:
            mode["version"] = generation
        with self._errors():
            try:
                obstore.put(self._store, check_key(key), data, mode=mode, use_multipart=False)
            except (PreconditionError, FileNotFoundError):
                return False
        return True

    def stat(self, key: str) -> BlobInfo | None:
        with self._errors():
            try:
                return _info(obstore.head(self._store, check_key(key)))
            except FileNotFoundError:
                return None

    def delete(self, key: str) -> None:
        with self._errors():
            try:
                obstore.delete(self._store, check_key(key))
            except FileNotFoundError:
                return

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        check_key(prefix.rstrip("/"))
        with self._errors():
            found = [_info(meta) for batch in obstore.list(self._store, prefix) for meta in batch]
        return (info for info in found if is_key(info.key))

    def exclusive(self) -> AbstractContextManager[object]:
        return self._lock

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError) as error:
            reason = str(error).partition("\n")[0]
            remedy = "are the address and the credentials right (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and so on)?"
            raise StoreUnavailableError(f"{self.name}: {reason}: {remedy}") from error


def _info(meta: "ObjectMeta") -> BlobInfo:
    return BlobInfo(meta["path"], meta["size"], meta["last_modified"].timestamp(), _version(meta))


def _version(meta: "ObjectMeta") -> str:
    """S3 and Azure compare the entity tag, Google its generation number."""
    return f"{meta['e_tag'] or ''} {meta['version'] or ''}"
