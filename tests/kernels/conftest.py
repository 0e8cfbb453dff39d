"""What tests of operators share."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def poisoned_outputs() -> Iterator[None]:
    """New tensors hold NaN (integers: the largest value) until they are written, at::empty's in C++ too."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(100).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
