"""The recurrence chunk by chunk: Triton against the reference, and against itself token by token."""

import pytest
import torch

from tests.kernels.gpu.recurrence_forms import SIZES, errors

CHUNKED = [form for form in SIZES if form != "mamba"]


@pytest.mark.parametrize("form", CHUNKED)
def test_scan_equals_reference(form: str) -> None:
    y, state = errors(form, (70, 0, 1, 64, 5, 17), 0, torch.float32)
    assert y <= 5e-5
    assert state <= 5e-5
