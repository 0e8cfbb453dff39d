"""The operators' CUDA implementations, in Triton. Imported only where there is a GPU, and by their own tests."""

import torch

from ostinato.kernels.gpu.recurrence import recurrence


def register(library: torch.library.Library) -> None:
    """Registers them for CUDA."""
    library.impl("recurrence", recurrence, "CUDA")
