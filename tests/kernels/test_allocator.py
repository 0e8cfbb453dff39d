"""Freed memory stays with the process: counted in page faults, in a process of its own."""

import platform
import subprocess
import sys

import pytest

from ostinato.kernels.allocator import KEPT_BYTES, MAPPED_BYTES

PASSES = """
import ctypes, resource, sys, torch
from ostinato.kernels.allocator import keep_freed_memory
size = int(sys.argv[2])
def run():
    tensors = [torch.empty(size, dtype=torch.uint8).fill_(1) for _ in range(4)]
    del tensors
ctypes.CDLL(None).mallopt(-3, 1 << 20)  # what has a mebibyte comes from the system
if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(10):  # until there is a place for each
    run()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    run()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
SIZE = 20 << 20


def page_faults(mode: str) -> int:
    command = [sys.executable, "-c", PASSES, mode, str(SIZE)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc: with other C libraries nothing is done")
def test_what_a_pass_frees_the_next_one_gets() -> None:
    assert 4 * SIZE < KEPT_BYTES
    assert SIZE < MAPPED_BYTES
    pages = 10 * 4 * SIZE // 4096
    assert page_faults("map") > pages / 2
    assert page_faults("keep") < pages / 100
