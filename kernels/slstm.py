"""The sLSTM cell of xLSTM: an LSTM with an exponential input gate, a normaliser and a stabiliser.

    (i, f, z, o) = x + R^T h + bias                   per head: R mixes the channels of one head
    m' = max(log sigmoid(f) + m, i)
    c' = e^(log sigmoid(f) + m - m') c + e^(i - m') tanh(z)
    n' = e^(log sigmoid(f) + m - m') n + e^(i - m')
    h' = sigmoid(o) c' / n'

Of the two forget gates that the paper allows this is the sigmoid, which the authors' models use. After any token
n >= 1, since one of the two weights is 1: so n = 0 means exactly that nothing has been read. Then m stands for minus
infinity, whatever it holds (m' = i, as in the authors' code), and a slot of zeros is the empty state.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ostinato.kernels import dispatch
from ostinato.kernels.operands import check_float32, check_operands, check_shapes
from ostinato.kernels.packed import Packed
from ostinato.kernels.reference import token_by_token


def slstm_ref(
    x: Tensor,
    recurrent: Tensor,
    bias: Tensor,
    state: Tensor,
    src: Tensor,
    dst: Tensor,
    starts: Tensor,
    longest: int,
) -> Tensor:
    """The equations above, token by token. Differentiable."""
    inputs = x.float()

    def advance(before: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        h, c, n, m = before.unbind(1)
        gates = inputs[at] + torch.einsum("bhj,hgjd->bghd", h, recurrent) + bias
        i, f, z, o = gates.unbind(1)
        kept = F.logsigmoid(f) + torch.where(n > 0, m, -torch.inf)
        m = torch.maximum(kept, i)
        past, now = torch.exp(kept - m), torch.exp(i - m)
        c, n = past * c + now * torch.tanh(z), past * n + now
        h = torch.sigmoid(o) * c / n
        return torch.stack([h, c, n, m], dim=1), h

    return token_by_token(advance, inputs[:0, 0], state, src, dst, starts, longest)


def _slstm_meta(x: Tensor, *_: object) -> Tensor:
    return x.new_empty((x.shape[0], *x.shape[2:]), dtype=torch.float32)


dispatch.define(
    "slstm(Tensor x, Tensor recurrent, Tensor bias, Tensor(a!) state, Tensor src, Tensor dst, Tensor starts, "
    "int longest) -> Tensor",
    reference=slstm_ref,
    meta=_slstm_meta,
)


def slstm(x: Tensor, recurrent: Tensor, bias: Tensor, state: Tensor, batch: Packed) -> Tensor:
    """Runs the sLSTM cell over packed sequences, in place by slot.

    x: what the layer's input adds to the gates, in the order i, f, z, o: [T, 4, H, D] fp32, bf16 or fp16, each token
    contiguous, with any stride between tokens. recurrent: R, [H, 4, D, D] fp32, from the channel in the third dimension
    to the channel in the last. bias: [4, H, D] fp32. state: [slots, 4, H, D] fp32, contiguous, rows h, c, n, m; zeros
    are the empty state. Returns h after every token: [T, H, D] fp32. Raises TypeError, ValueError: operands that do not
    fit.

    Source: Beck et al. 2024 (xLSTM), section 2.2, equations 8 to 17.
    """
    batch.check(x.shape[0])
    heads, width = state.shape[2:] if state.dim() == 4 else (0, 0)
    fits = x.shape[1:] == bias.shape == state.shape[1:] == (4, heads, width) and recurrent.shape == (
        heads,
        4,
        width,
        width,
    )
    check_shapes("slstm", fits, x=x, recurrent=recurrent, bias=bias, state=state)
    check_operands("slstm", x=x)
    check_float32("slstm", recurrent=recurrent, bias=bias, state=state)
    h: Tensor = dispatch.operators(x).slstm(
        x, recurrent, bias, state, batch.src, batch.dst, batch.starts, batch.longest
    )
    return h
