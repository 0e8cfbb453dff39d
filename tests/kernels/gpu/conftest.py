"""Kernels run in Triton's interpreter here, on CPU tensors: it is chosen when a kernel is defined."""

import importlib.util
import os

os.environ["TRITON_INTERPRET"] = "1"

if importlib.util.find_spec("triton") is None:  # it is published for Linux only
    collect_ignore_glob = ["test_*.py"]
