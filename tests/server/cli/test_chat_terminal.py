"""`ostinato chat` on a terminal: Ctrl-C stops the answer and not the program, Ctrl-D ends it."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.server.harness import GLA, TIMEOUT

CTRL_C, CTRL_D = b"\x03", b"\x04"
PROMPT = b"> "


class Terminal:
    """A pseudo-terminal with `ostinato chat` on it."""

    def __init__(self, *options: str) -> None:
        self.master, follower = pty.openpty()
        command = [sys.executable, "-W", "error", "-m", "ostinato.server.cli.main", "chat", str(GLA), *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "TERM": "dumb"}
        self.process = subprocess.Popen(
            command,
            stdin=follower,
            stdout=follower,
            stderr=follower,
            env=environment,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(follower)
        self.seen = b""

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def read_until(self, text: bytes, *, pressing: bytes = b"") -> bytes:
        """What came up to and with `text`; the rest is kept for the next call. `pressing`: a key to press once a second
        until then, as people do.
        """
        deadline = time.monotonic() + TIMEOUT
        while text not in self.seen:
            assert time.monotonic() < deadline, f"{text!r} did not come; on the screen: {self.seen!r}"
            self.type(pressing)
            if select.select([self.master], [], [], 1.0)[0]:
                self.seen += os.read(self.master, 65536)
        before, found, self.seen = self.seen.partition(text)
        return before + found

    def read_more(self, count: int) -> None:
        """Waits for so many more bytes."""
        deadline = time.monotonic() + TIMEOUT
        while len(self.seen) < count:
            assert time.monotonic() < deadline, f"only {self.seen!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += os.read(self.master, 65536)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)


def _take_terminal() -> None:
    """In the child: makes the pseudo-terminal its controlling one, which turns keys into signals. That these are not
    ignored, as they are in a script's background, is what a terminal's shell does for its programs.
    """
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    opened = Terminal("--max-tokens", "1000000", "--temperature", "0")
    yield opened
    opened.close()


def test_ctrl_c_stops_the_answer_and_ctrl_d_ends_the_program(terminal: Terminal) -> None:
    terminal.read_until(PROMPT)
    for question in (b"Hello\r", b"And again\r"):
        terminal.type(question)
        terminal.read_until(b"\n")
        terminal.read_more(20)
        terminal.type(CTRL_C)
        terminal.read_until(b"[stopped]")
        terminal.read_until(PROMPT)
    terminal.type(CTRL_D)
    assert terminal.process.wait(TIMEOUT) == 0


def test_ctrl_c_at_the_prompt_explains_how_to_leave(terminal: Terminal) -> None:
    terminal.read_until(PROMPT)
    terminal.type(b"half a line")
    terminal.read_until(b"half a line")
    # Between showing its prompt and waiting for keys, readline takes a signal only with the next key.
    terminal.read_until(b"/quit", pressing=CTRL_C)
    terminal.read_until(PROMPT)
    terminal.type(b"/quit\r")
    assert terminal.process.wait(TIMEOUT) == 0


def test_ctrl_c_ends_generate_with_what_there_is() -> None:
    command = [sys.executable, "-W", "error", "-m", "ostinato.server.cli.main", "generate", str(GLA), "-p", "Hello"]
    command += ["--max-tokens", "1000000", "--temperature", "0"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(20), "no text came"
        process.send_signal(signal.SIGINT)
        assert process.stdout.read().endswith(b"\n")
        assert b"Traceback" not in process.stderr.read()
        assert process.wait(TIMEOUT) == 130
