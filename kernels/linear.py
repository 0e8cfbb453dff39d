"""Projections: a matrix product whose every row is computed as if it were alone.

On the CPU the weight is reordered once for oneDNN, which both reads it nearly as fast as memory allows and, with two
precautions, gives each row the same bits whatever the number of rows, their order or the number of threads:

- one row is padded to two, because the product of a single row is another algorithm (a matrix-vector product);
  larger numbers of rows are padded too, to a few sizes, because oneDNN compiles and keeps code for each;
- AMX is switched off (`ostinato.kernels.dispatch`), because there oneDNN splits sums differently for different
  numbers of rows.

`tests/kernels/test_linear.py` holds it to that.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.kernels.dispatch import use_prepacked


def padded_rows(rows: int) -> int:
    """The next of 16 even sizes up to 32, and of 8 sizes in every doubling beyond: at most an eighth more."""
    unit = max(2, 1 << max(0, (rows - 1).bit_length() - 4))
    return max(2, -(-rows // unit) * unit)


class Linear:
    """y = x W^T + bias, with the weight packed at construction.

    weight: [out, in] in the dtype of the computation; bias: [out] or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.dtype = weight.dtype
        self._bias = None if bias is None else bias.float()
        self._prepacked = use_prepacked(weight)
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous()) if self._prepacked else weight

    def __call__(self, x: Tensor) -> Tensor:
        """x: [N, in] of any float dtype, rounded to the weight's. Returns [N, out] fp32 (rounded to it likewise)."""
        y = self._product(x.to(self.dtype)).float()
        return y if self._bias is None else y.add_(self._bias)

    def _product(self, x: Tensor) -> Tensor:
        if not self._prepacked:
            return F.linear(x, self._weight)
        rows = x.shape[0]
        if missing := padded_rows(rows) - rows:
            x = F.pad(x, (0, 0, 0, missing))
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, None, "none", [], "")
        return y[:rows]
