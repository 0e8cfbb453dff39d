"""What every kind of blobs promises, on every kind."""

from collections.abc import Callable

import pytest

from ostinato.engine.errors import StateStoreError, StoreUnavailableError
from ostinato.engine.store.blobs import Blobs, open_blobs
from ostinato.engine.store.object_blobs import ObjectBlobs
from ostinato.engine.store.redis_blobs import RedisBlobs
from tests.engine.store.backends import free_port

TRICKS = ["../a", "a/../b", "/etc/passwd", "a//b", "", ".", "a/.", "a\\b", "a\x00b", "a b", "a/\n", "a\n"]


def test_bytes_come_back(blobs: Blobs) -> None:
    blobs.put("content/a.bin", b"one")
    blobs.put("content/a.bin", memoryview(bytearray(b"other")))
    blobs.put("content/empty", b"")
    assert bytes(blobs.get("content/a.bin") or b"") == b"other"
    assert bytes(blobs.get("content/empty") or b"") == b""
    info = blobs.stat("content/a.bin")
    assert info is not None
    assert (info.key, info.size) == ("content/a.bin", 5)
    assert blobs.get("content/b.bin") is None
    assert blobs.stat("content/b.bin") is None
    assert blobs.get_version("content/b.bin") is None


def test_a_listing_has_what_is_below_its_prefix_and_no_more(blobs: Blobs) -> None:
    for key in ("records/aa/1", "records/aa/2", "records/aab/3", "content/4"):
        blobs.put(key, b"x")
    assert sorted(info.key for info in blobs.list("records/")) == ["records/aa/1", "records/aa/2", "records/aab/3"]
    assert sorted(info.key for info in blobs.list("records/aa/")) == ["records/aa/1", "records/aa/2"]
    assert list(blobs.list("nothing/")) == []
    assert {info.key: info for info in blobs.list("content/")} == {"content/4": blobs.stat("content/4")}


def test_deleting_deletes_one_and_may_be_done_twice(blobs: Blobs) -> None:
    blobs.put("content/a", b"x")
    blobs.put("content/b", b"x")
    blobs.delete("content/a")
    blobs.delete("content/a")
    assert blobs.get("content/a") is None
    assert [info.key for info in blobs.list("content/")] == ["content/b"]


def test_a_replacement_needs_the_version_that_is_there(reopen: Callable[[], Blobs]) -> None:
    blobs, other = reopen(), reopen()
    blobs.put("records/a", b"0")
    found = blobs.get_version("records/a")
    assert found is not None
    assert other.replace("records/a", b"1", found[1])
    assert not blobs.replace("records/a", b"2", found[1])
    assert bytes(blobs.get("records/a") or b"") == b"1"
    blobs.delete("records/a")
    assert not blobs.replace("records/a", b"3", found[1])
    assert blobs.get("records/a") is None


def test_a_replacement_may_be_made_inside_the_lock(blobs: Blobs) -> None:
    blobs.put("records/a", b"0")
    with blobs.exclusive():
        found = blobs.get_version("records/a")
        assert found is not None
        assert blobs.replace("records/a", b"1", found[1])
    assert bytes(blobs.get("records/a") or b"") == b"1"


@pytest.mark.parametrize("key", TRICKS)
def test_keys_cannot_leave_their_place(blobs: Blobs, key: str) -> None:
    for use in (blobs.get, blobs.delete, blobs.stat, blobs.get_version):
        with pytest.raises(ValueError, match="not a blob key"):
            use(key)
    with pytest.raises(ValueError, match="not a blob key"):
        blobs.put(key, b"x")


def test_a_server_that_is_not_there_is_named() -> None:
    port = free_port()
    with pytest.raises(StoreUnavailableError, match=rf"127\.0\.0\.1:{port}.*is the server running"):
        RedisBlobs(f"redis://user:secret@127.0.0.1:{port}")


def test_errors_do_not_tell_the_password() -> None:
    with pytest.raises(StoreUnavailableError) as caught:
        RedisBlobs(f"redis://user:secret@127.0.0.1:{free_port()}")
    assert "secret" not in str(caught.value)


def test_an_object_store_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with pytest.raises(StoreUnavailableError, match=r"s3://states/a.*AWS_ENDPOINT_URL"):
        ObjectBlobs("s3://states/a").get("content/a")


def test_a_bucket_that_does_not_exist_is_an_error_and_not_an_empty_store(s3_url: str) -> None:
    with pytest.raises(StoreUnavailableError, match="s3://no-such-bucket"):
        ObjectBlobs("s3://no-such-bucket").put("content/a", b"x")


def test_a_redis_out_of_memory_says_so(redis_url: str) -> None:
    import redis

    blobs = RedisBlobs(redis_url)
    with redis.Redis.from_url(redis_url) as client:
        client.config_set("maxmemory", "1")
        try:
            with pytest.raises(StoreUnavailableError, match="out of memory"):
                blobs.put("content/a", b"x" * 1000)
        finally:
            client.config_set("maxmemory", "0")
    assert blobs.stat("content/a") is None


@pytest.mark.parametrize("url", ["gs://bucket/folder", "az://container/folder"])
def test_google_and_azure_are_opened_by_url(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    blobs = open_blobs(url)
    assert isinstance(blobs, ObjectBlobs)
    assert blobs.name == url


def test_an_unknown_url_is_refused() -> None:
    with pytest.raises(StateStoreError, match="not ftp://"):
        open_blobs("ftp://host/folder")


@pytest.mark.parametrize(
    ("module", "url", "extra"), [("redis", "redis://localhost", "redis"), ("obstore", "s3://a", "object-store")]
)
def test_a_missing_package_is_named_with_its_remedy(
    module: str, url: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("redis_blobs", "object_blobs"):
        monkeypatch.delitem(sys.modules, f"ostinato.engine.store.{name}", raising=False)

    class Missing:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name.partition(".")[0] == module:
                raise ModuleNotFoundError(f"No module named {name!r}", name=module)

    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    with pytest.raises(StateStoreError, match=rf"pip install 'ostinato\[{extra}\]'"):
        open_blobs(url)
