"""`ostinato serve` in a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from tests.server.harness import GLA, TIMEOUT


@dataclass
class Serving:
    """A running `ostinato serve`."""

    process: subprocess.Popen[str]
    url: str
    output: list[str]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        return self.process.wait(TIMEOUT)


@contextlib.contextmanager
def running(*options: str, model: str = str(GLA), **environment: str) -> Iterator[Serving]:
    command = [sys.executable, "-W", "error", "-m", "ostinato.server.cli.main", "serve", model, "--port", "0", *options]
    if "--state-store" not in options:
        command += ["--state-store", "none"]  # the default is in the user's home
    environment = {**os.environ, **environment, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "200"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment)
    output: list[str] = []
    assert process.stderr is not None
    reader = threading.Thread(target=output.extend, args=(process.stderr,), daemon=True)
    try:
        url = _ready_url(process, output)
        reader.start()
        yield Serving(process, url, output)
    finally:
        process.kill()
        process.wait()
        if reader.ident is not None:
            reader.join()
        process.stderr.close()


def _ready_url(process: subprocess.Popen[str], output: list[str]) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        output.append(line)
        if match := re.search(r"Ready at (http://\S+)", line):
            return match[1]
    raise AssertionError("the server ended before it was ready:\n" + "".join(output))
