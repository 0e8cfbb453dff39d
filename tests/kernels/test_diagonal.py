"""The diagonal recurrence against the authors' forms of its families."""

import pytest
import torch
from torch.nn import functional as F

from ostinato.kernels.diagonal import diagonal
from ostinato.kernels.packed import Packed
from tests.kernels.random_batches import relative_error, uniform


@pytest.mark.parametrize("seed", range(3))
def test_hgrn(seed: int) -> None:
    """Against flash-linear-attention's naive form."""
    naive = pytest.importorskip(
        "fla.ops.hgrn.naive", reason="install the `test` extra for flash-linear-attention", exc_type=ImportError
    )
    generator = torch.Generator().manual_seed(seed)
    x, log_decay = uniform(generator, 37, 20), F.logsigmoid(uniform(generator, 37, 20, low=-12.0, high=12.0))
    state = uniform(generator, 1, 20)
    expected, last = naive.naive_recurrent_hgrn(
        x.unsqueeze(0), log_decay.unsqueeze(0), initial_state=state.clone(), output_final_state=True
    )
    found = diagonal(x, log_decay, state, Packed.of([0], [37]))
    assert relative_error(found, expected[0]) <= 1e-6
    assert relative_error(state, last) <= 1e-6


@pytest.mark.parametrize("seed", range(3))
def test_rg_lru(seed: int) -> None:
    """Against transformers' RecurrentGemma, whose gates are computed here from its weights."""
    from transformers.models.recurrent_gemma.configuration_recurrent_gemma import RecurrentGemmaConfig
    from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRglru

    generator = torch.Generator().manual_seed(seed)
    heads, width, tokens = 3, 8, 31
    layer = RecurrentGemmaRglru(RecurrentGemmaConfig(num_attention_heads=heads, lru_width=heads * width))
    for parameter in layer.parameters():
        parameter.data.copy_(uniform(generator, *parameter.shape))
    u = uniform(generator, tokens, heads * width)
    with torch.no_grad():
        expected = layer(u.unsqueeze(0), torch.arange(tokens).unsqueeze(0))[0]

        def gate(weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
            mixed = torch.einsum("thi,hij->thj", u.view(tokens, heads, width), weight) + bias
            return torch.sigmoid(mixed).flatten(1)

        recurrent = gate(layer.recurrent_gate_weight, layer.recurrent_gate_bias)
        log_decay = -8.0 * recurrent * F.softplus(layer.recurrent_param)
        scale = (1.0 - torch.exp(2.0 * log_decay)).sqrt().index_fill(0, torch.tensor(0), 1.0)  # 1 at position 0
        x = scale * u * gate(layer.input_gate_weight, layer.input_gate_bias)
    state = torch.zeros(2, heads * width)
    found = diagonal(x, log_decay, state, Packed.of([-1], [tokens], dst=[1]))
    assert relative_error(found, expected) <= 1e-5
    assert relative_error(state[1], layer.recurrent_states[0]) <= 1e-5


def test_decay_of_minus_infinity_forgets_everything() -> None:
    state = torch.full((1, 3), 5.0)
    h = diagonal(torch.ones(1, 3), torch.full((1, 3), -torch.inf), state, Packed.of([0], [1]))
    assert torch.equal(h, torch.ones(1, 3))
    assert torch.equal(state, h)
