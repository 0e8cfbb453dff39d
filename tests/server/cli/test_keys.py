"""`ostinato keys`, and the file it writes."""

from __future__ import annotations

import hashlib
import json
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from ostinato.server.cli.main import app
from ostinato.server.security.api_keys import MIN_CHARACTERS, KeyList, KeyRing, WeakKeyError, single_key
from ostinato.server.security.key_file import KeyFileError, Keys, changing, read_keys, write_keys
from tests.server.harness import GLA
from tests.server.processes import running


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "new" / "keys.json"


def keys(file: Path, *arguments: str) -> Result:
    environment = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    return CliRunner(env=environment).invoke(app, ["keys", *arguments, "--file", str(file)])


def test_a_key_is_printed_once_and_only_its_hash_is_kept(file: Path) -> None:
    result = keys(file, "create", "alice")
    assert result.exit_code == 0, result.output
    key = result.stdout.strip()
    assert re.fullmatch(r"ost_[A-Za-z0-9_-]{43}", key)
    assert key not in file.read_text()
    assert key not in result.stderr
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    (entry,) = json.loads(file.read_text())["keys"]
    assert entry["secrets"][0]["sha256"] == hashlib.sha256(key.encode()).hexdigest()
    assert KeyRing(read_keys(file).keys).find(key) is not None
    shown = keys(file, "list").stdout
    assert "alice" in shown
    assert "no limits" in shown
    assert key not in shown


def test_limits_and_expiry_are_kept_and_shown(file: Path) -> None:
    limits = ["--requests-per-minute", "60", "--tokens-per-minute", "10000", "--concurrency", "4"]
    assert (
        keys(file, "create", "alice", *limits, "--state-bytes", "1GiB", "--expires", "30d", "--metrics").exit_code == 0
    )
    (key,) = read_keys(file).keys
    assert dict(key.limits) == {
        "requests_per_minute": 60,
        "tokens_per_minute": 10000,
        "concurrency": 4,
        "state_bytes": 2**30,
    }
    assert key.metrics
    assert key.secrets[0].expires is not None
    assert 30 * 86400 - 60 < key.secrets[0].expires - key.secrets[0].created < 30 * 86400 + 60
    shown = keys(file, "list").stdout
    for word in ("requests_per_minute=60", "state_bytes=1073741824", "metrics", "ends 20"):
        assert word in shown


def test_rotating_with_some_time_for_the_old_key(file: Path) -> None:
    old = keys(file, "create", "alice", "--concurrency", "3").stdout.strip()
    before = read_keys(file).keys[0]
    new = keys(file, "rotate", "alice", "--keep", "1h").stdout.strip()
    (after,) = read_keys(file).keys
    assert (after.owner, after.limits) == (before.owner, before.limits)
    ring = KeyRing([after])
    for key, ends in ((old, True), (new, False)):
        found = ring.find(key)
        assert found is not None
        assert (found[1].expires is not None) is ends
    keys(file, "rotate", "alice")
    assert KeyRing(read_keys(file).keys).find(old) is None
    assert KeyRing(read_keys(file).keys).find(new) is None


def test_revoking(file: Path) -> None:
    alice = keys(file, "create", "alice").stdout.strip()
    bob = keys(file, "create", "bob").stdout.strip()
    owner = read_keys(file).keys[0].owner
    result = keys(file, "revoke", "alice")
    assert result.exit_code == 0
    assert owner in result.stderr, "how to come back to the states"
    ring = KeyRing(read_keys(file).keys)
    assert ring.find(alice) is None
    assert ring.find(bob) is not None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["create", "alice"], ["alice", "rotate"]),
        (["create", "a b"], ["name"]),
        (["create", "../x"], ["name"]),
        (["create", "bob", "--owner", "Bob"], ["owner"]),
        (["create", "bob", "--concurrency", "0"], ["--concurrency"]),
        (["create", "bob", "--expires", "soon"], ["soon"]),
        (["rotate", "bob"], ["bob", "list"]),
        (["revoke", "bob"], ["bob", "list"]),
    ],
)
def test_mistakes_change_nothing(file: Path, arguments: list[str], words: list[str]) -> None:
    keys(file, "create", "alice")
    before = file.read_bytes()
    result = keys(file, *arguments)
    assert result.exit_code == 2
    for word in words:
        assert word in result.output
    assert "Traceback" not in result.output
    assert file.read_bytes() == before


def test_an_owner_that_is_taken_is_refused(file: Path) -> None:
    keys(file, "create", "alice")
    owner = read_keys(file).keys[0].owner
    result = keys(file, "create", "bob", "--owner", owner)
    assert result.exit_code == 1
    assert "twice" in result.output
    assert len(read_keys(file).keys) == 1


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"version": 2}', '{"keys": {}}', '{"keys": [], "more": 1}', '{"keys": [{"name": 1}]}', "\udcff"],
)
def test_a_file_that_is_none_is_refused(file: Path, text: str) -> None:
    file.parent.mkdir()
    file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(KeyFileError, match=re.escape(str(file))):
        read_keys(file)
    before = file.read_bytes()
    assert keys(file, "create", "alice").exit_code == 1, "nothing is written over it"
    assert file.read_bytes() == before


def test_one_secret_for_two_names_is_refused(file: Path) -> None:
    keys(file, "create", "alice")
    fields = json.loads(file.read_text())
    twin = {**fields["keys"][0], "name": "bob", "owner": "0" * 32}
    file.write_text(json.dumps({"keys": [fields["keys"][0], twin]}))
    with pytest.raises(KeyFileError, match="secret"):
        read_keys(file)


def test_a_file_that_others_may_write_is_warned_of(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys(file, "create", "alice")
    Keys(file)
    assert not caplog.records
    file.chmod(0o660)
    Keys(file)
    assert "written by other users" in caplog.text


def test_a_link_stays_one(tmp_path: Path) -> None:
    real, link = tmp_path / "real.json", tmp_path / "keys.json"
    write_keys(real, KeyList())
    link.symlink_to(real)
    keys(link, "create", "alice")
    assert link.is_symlink()
    assert len(read_keys(real).keys) == 1


def test_two_at_once_lose_nothing(file: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from ostinato.server.cli.keys import _add\n"
        "from ostinato.server.security.api_keys import KeyLimits, new_owner\n"
        "for i in range(10): _add(Path(sys.argv[1]), f'{sys.argv[2]}{i}', new_owner(), KeyLimits(), False, None)"
    )
    started = [subprocess.Popen([sys.executable, "-c", program, str(file), name]) for name in ("a", "b", "c")]
    assert [process.wait(60) for process in started] == [0, 0, 0]
    assert len(read_keys(file).keys) == 30
    assert {item.name for item in file.parent.iterdir()} == {"keys.json", "keys.json.lock"}


def test_a_change_that_fails_leaves_the_file(file: Path) -> None:
    keys(file, "create", "alice")
    before = file.read_bytes()

    def fail() -> None:
        with changing(file) as found:
            found.clear()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    "key", ["x" * (MIN_CHARACTERS - 1), "correct horse battery staple and more", "\u00e9" * 40, ""]
)
def test_keys_that_can_be_guessed_or_sent_by_no_header_are_refused(key: str) -> None:
    with pytest.raises(WeakKeyError):
        single_key(key)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--api-key", "secret"], ["6 characters"]),
        (["--api-keys", "/no/such/keys.json"], ["/no/such/keys.json", "ostinato keys create"]),
        (["--cors-origin", "page.example"], ["page.example"]),
    ],
)
def test_serve_reports_mistakes_before_it_loads_a_model(options: list[str], words: list[str]) -> None:
    environment = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    result = CliRunner(env=environment).invoke(app, ["serve", str(GLA), "--port", "0", *options])
    assert result.exit_code in (1, 2)
    for word in words:
        assert word in result.output
    assert "architecture" not in result.output


def test_serve_takes_its_key_from_the_environment() -> None:
    import httpx

    key = "0123456789abcdef" * 2
    with running(OSTINATO_API_KEY=key) as server:
        assert httpx.get(f"{server.url}/v1/models").status_code == 401
        assert httpx.get(f"{server.url}/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == 200
        assert httpx.get(f"{server.url}/health").status_code == 200
    assert key not in "".join(server.output)
