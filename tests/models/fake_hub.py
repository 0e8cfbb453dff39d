"""A hub on the local machine: the endpoints that `huggingface_hub` asks for when it downloads a model."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub(ThreadingHTTPServer):
    """Serves the folders of `repositories` (hub id -> folder).

    Attributes:
        gated: ids whose files are refused.
        fetched: names of the files whose content was sent.
    """

    daemon_threads = True

    def __init__(self, repositories: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = repositories
        self.gated: set[str] = set()
        self.fetched: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @contextmanager
    def running(self) -> Iterator[FakeHub]:
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            thread.join()
            self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: FakeHub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, format: str, *args: object) -> None:
        """Silence: the tests look at `fetched`."""

    def _answer(self, with_body: bool) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        parts = path.removeprefix("api/models/").split("/")
        repository = "/".join(parts[:2])
        folder = self.server.repositories.get(repository)
        if folder is None:
            self._refuse(404, "RepoNotFound")
        elif parts[2:3] == ["resolve"]:
            self._send_file(repository, folder / "/".join(parts[4:]), with_body)
        elif parts[2:3] == ["tree"]:
            self._send(json.dumps([_entry(file) for file in sorted(folder.iterdir())]).encode(), with_body)
        else:
            siblings = [{"rfilename": file.name} for file in sorted(folder.iterdir())]
            self._send(json.dumps({"id": repository, "sha": COMMIT, "siblings": siblings}).encode(), with_body)

    def _send_file(self, repository: str, file: Path, with_body: bool) -> None:
        if repository in self.server.gated:
            self._refuse(403, "GatedRepo")
        elif not file.is_file():
            self._refuse(404, "EntryNotFound")
        else:
            if with_body:
                self.server.fetched.append(file.name)
            self._send(file.read_bytes(), with_body)

    def _send(self, content: bytes, with_body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if with_body:
            self.wfile.write(content)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _entry(file: Path) -> dict[str, object]:
    content = file.read_bytes()
    return {"type": "file", "path": file.name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
