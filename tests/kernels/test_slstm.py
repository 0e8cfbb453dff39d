"""The sLSTM cell against the authors' package, and against the equations without a stabiliser."""

import pytest
import torch

from ostinato.kernels.packed import Packed
from ostinato.kernels.slstm import slstm
from tests.kernels.random_batches import relative_error, uniform


@pytest.mark.parametrize("seed", range(3))
def test_xlstm(seed: int) -> None:
    """Against the plain torch cell of the authors' package, from an empty state and going on."""
    cell = pytest.importorskip("xlstm.blocks.slstm.cell", reason="install the `test` extra for xlstm")
    generator = torch.Generator().manual_seed(seed)
    heads, width, tokens = 3, 12, 29
    config = cell.sLSTMCellConfig(hidden_size=heads * width, num_heads=heads, backend="vanilla", dtype="float32")
    theirs = cell.sLSTMCell(config)
    recurrent, bias = uniform(generator, heads, 4, width, width), uniform(generator, 4, heads, width)
    theirs._recurrent_kernel_.data = theirs._recurrent_kernel_ext2int(recurrent.transpose(1, 2))
    theirs._bias_.data = theirs._bias_ext2int(bias.transpose(0, 1))
    x, pool, state = (
        uniform(generator, tokens, 4, heads, width, low=-6.0, high=6.0),
        torch.zeros(2, 4, heads, width),
        None,
    )
    for piece in (slice(0, 20), slice(20, tokens)):
        with torch.no_grad():
            expected, state = theirs(x[piece].flatten(1).unsqueeze(0), state)
        found = slstm(x[piece], recurrent, bias, pool, Packed.of([1], [piece.stop - piece.start]))
        assert relative_error(found, expected[0].transpose(0, 1)) <= 1e-5
        assert relative_error(pool[1].flatten(1), state[:, 0]) <= 1e-5


@pytest.mark.parametrize("seed", range(3))
def test_equations_without_stabiliser(seed: int) -> None:
    """Equations 8 to 14 of the paper in float64, where the exponentials do not overflow."""
    generator = torch.Generator().manual_seed(seed)
    heads, width, tokens = 2, 7, 40
    recurrent, bias = uniform(generator, heads, 4, width, width), uniform(generator, 4, heads, width)
    x = uniform(generator, tokens, 4, heads, width, low=-6.0, high=6.0)
    h, c, n = torch.zeros(3, heads, width, dtype=torch.float64)
    expected = []
    for token in x.double():
        i, f, z, o = token + bias + (h[:, None, :, None] * recurrent.double()).sum(2).transpose(0, 1)
        c = torch.sigmoid(f) * c + i.exp() * z.tanh()
        n = torch.sigmoid(f) * n + i.exp()
        h = torch.sigmoid(o) * c / n
        expected.append(h)
    found = slstm(x, recurrent, bias, torch.zeros(1, 4, heads, width), Packed.of([0], [tokens]))
    assert relative_error(found, torch.stack(expected)) <= 1e-5


def test_stabiliser_of_an_empty_slot_means_nothing() -> None:
    """A slot is empty when its third row is zero, whatever stands in the fourth."""
    generator = torch.Generator().manual_seed(0)
    x, recurrent, bias = (uniform(generator, *shape) for shape in ((3, 4, 2, 5), (2, 4, 5, 5), (4, 2, 5)))
    pool = torch.zeros(2, 4, 2, 5)
    pool[1, 3] = 1e30
    first, second = (slstm(x, recurrent, bias, pool, Packed.of([slot], [3])) for slot in (0, 1))
    assert torch.equal(first, second)
    assert torch.equal(pool[0], pool[1])
