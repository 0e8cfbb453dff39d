"""Operands of projections and of a mixture of experts, drawn at random: what `cases.py` is made of."""

from ostinato.kernels.gpu.calls import Draw, Parts

QWEN3_NEXT = {"count": 512, "chosen": 10, "width": 2048, "inner": 512}
SMALL = {"count": 7, "chosen": 3, "width": 20, "inner": 12}


def linear(draw: Draw, tokens: int, slots: int, *, outputs: int, inputs: int) -> Parts:
    """With a residual, without a bias."""
    del slots
    per_token = {"x": draw.operand(tokens, inputs), "residual": draw.parameter(tokens, outputs)}
    weight = (draw.parameter(outputs, inputs) * inputs**-0.5).to(draw.dtype)
    return per_token, {}, {"weight": weight, "bias": None, "outputs": outputs}


def activated_linear(draw: Draw, tokens: int, slots: int, *, outputs: int, inputs: int) -> Parts:
    """With SwiGLU."""
    per_token, _, parameters = linear(draw, tokens, slots, outputs=outputs, inputs=inputs)
    del per_token["residual"]
    return per_token, {}, {**parameters, "activation": "swiglu", "dtype": draw.dtype}


def route(draw: Draw, tokens: int, slots: int, *, count: int, chosen: int) -> Parts:
    """Logits."""
    del slots
    return {"logits": draw.parameter(tokens, count, low=-9.0, high=9.0)}, {}, {"chosen": chosen, "normalize": True}


def experts(draw: Draw, tokens: int, slots: int, *, count: int, chosen: int, width: int, inner: int) -> Parts:
    """Different experts for every token, in order."""
    del slots
    places = draw.parameter(tokens, count).argsort(dim=-1)[:, :chosen].sort(dim=-1).values
    per_token = {
        "x": draw.operand(tokens, width),
        "experts": places.int(),
        "weights": draw.parameter(tokens, chosen, low=0.0),
        "residual": draw.parameter(tokens, width),
    }
    gate_up = draw.parameter(count, 2 * inner, width) * width**-0.5
    down = draw.parameter(count, width, inner) * inner**-0.5
    return per_token, {}, {"gate_up": [gate_up.to(draw.dtype)], "down": [down.to(draw.dtype)], "inner": inner}
