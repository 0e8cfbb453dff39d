"""The tests' side of the exchange with an oracle process (see `tests.oracles.worker`)."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]


class OracleError(Exception):
    """The oracle died, was too slow, or could not run the checkpoint. Never a verdict on our model."""


class Oracle:
    """One oracle process, started at the first question and kept for the next ones. Use it as a context manager."""

    def __init__(self, name: str, *, timeout: float = 240.0) -> None:
        """`name`: a module of `tests.oracles`. `timeout`: seconds for one job."""
        self.name = name
        self._timeout = timeout
        self._process: subprocess.Popen[str] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix=f"oracle-{name}-")

    def logits(self, checkpoint: Path, sequences: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """The fp32 logits [T, vocabulary] of each sequence, every position, each from an empty state.

        Raises:
            OracleError: with the oracle's own traceback.
        """
        out = Path(self._folder.name) / "logits.safetensors"
        job = {"checkpoint": str(checkpoint), "sequences": [list(ids) for ids in sequences], "out": str(out)}
        reply = self._ask(json.dumps(job))
        if "error" in reply:
            raise OracleError(f"oracle {self.name} on {checkpoint}:\n{reply['error']}")
        tensors = load_file(out)
        return [tensors[str(i)] for i in range(len(sequences))]

    def _ask(self, line: str) -> dict[str, str]:
        process = self._process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(line + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise OracleError(f"oracle {self.name} died:\n{self._stderr()}") from None
        ready, _, _ = select.select([process.stdout], [], [], self._timeout)
        if not ready:
            raise OracleError(f"oracle {self.name} gave no answer in {self._timeout:g} s:\n{self._stderr()}")
        answer = process.stdout.readline()
        if not answer:
            raise OracleError(f"oracle {self.name} died:\n{self._stderr()}")
        reply: dict[str, str] = json.loads(answer)
        return reply

    def _start(self) -> subprocess.Popen[str]:
        with open(self._stderr_path, "w") as stderr:
            return subprocess.Popen(
                [sys.executable, "-m", f"tests.oracles.{self.name}"],
                cwd=ROOT,
                # One thread: the tensors are small, and threads that wait for each other cost more than they bring.
                env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )

    @property
    def _stderr_path(self) -> Path:
        return Path(self._folder.name) / "stderr.txt"

    def _stderr(self) -> str:
        return self._stderr_path.read_text()[-4000:]

    def __enter__(self) -> Oracle:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._folder.cleanup()
