"""Which remedies against state collapse apply to which family, by `Model.family`: those that the tests hold, no others.

Source: Chen et al. 2024 (Stuffed Mamba, arXiv 2410.07145), whose formulas are for Mamba-2. Forgetting more and the
window need a state that is a decaying sum of what was read, with decays that all of V shares, which Mamba's are not; a
delta rule's is no such sum, and a normalised state would be scaled back. Remembering less scales all of a state alike,
which the norm of GLA's, HGRN2's and RetNet's heads undoes; where a token also reads itself past the state, it says how
much the state counts. A norm can be bounded wherever the state is a matrix that is read linearly.
"""

from collections.abc import Mapping

_LINEAR = frozenset({"clip_norm"})
_DECAYING = frozenset({"clip_norm", "forget", "window"})
_UNSHARED = frozenset({"clip_norm", "remember"})
_PAST_THE_STATE = frozenset({"clip_norm", "forget", "remember", "window"})

REMEDIES: Mapping[str, frozenset[str]] = {
    "GLA": _DECAYING,
    "HGRN2": _DECAYING,
    "Mamba-2": _PAST_THE_STATE,
    "RWKV-5.2": _PAST_THE_STATE,
    "RWKV-6": _PAST_THE_STATE,
    "RetNet": _DECAYING,
    "DeltaNet": _LINEAR,
    "Falcon-Mamba": _UNSHARED,
    "Gated DeltaNet": _LINEAR,
    "KDA": _LINEAR,
    "Mamba": _UNSHARED,
    "RWKV-7": _LINEAR,
}


def remedies(family: str) -> frozenset[str]:
    """Those that apply to a family."""
    return REMEDIES.get(family, frozenset())
