"""Tuned initial states: what a sequence remembers before its first token, in place of nothing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ostinato.engine.errors import RequestError
from ostinato.engine.state_pool import State
from ostinato.models.base import Model
from ostinato.models.initial_state import load_initial_state

DEFAULT = ""  # the name of the one that every sequence starts from unless it asks for another


@dataclass(frozen=True, slots=True)
class InitialState:
    """state: has read no token. digest: SHA-256 in hex of its tensors, which stored states name it by."""

    state: State
    digest: str


def read_initial_state(path: str | os.PathLike[str], model: Model) -> InitialState:
    """Reads a file of RWKV's state tuning. Raises CheckpointError, UnsupportedModelError: it does not fit the model."""
    tensors = load_initial_state(path, model)
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        # As bytes: numpy has no bfloat16.
        digest.update(name.encode() + tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return InitialState(State(tensors, num_read=0), digest.hexdigest())


def choose_initial_state(known: Mapping[str, InitialState], name: str | None) -> InitialState | None:
    """The one of that name, or without a name the default one, if there is one. Raises RequestError: unknown name."""
    if name is None:
        return known.get(DEFAULT)
    if name not in known or name == DEFAULT:
        names = ", ".join(sorted(repr(each) for each in known if each != DEFAULT)) or "none"
        raise RequestError(f"initial_state: {name!r} is not registered; known: {names}", "initial_state")
    return known[name]


def find_initial_state(known: Mapping[str, InitialState], digest: str) -> InitialState:
    """The one with that digest. Raises RequestError: it is not registered here."""
    found = next((each for each in known.values() if each.digest == digest), None)
    if found is None:
        raise RequestError("the state began from a tuned initial state that this server does not have", "state")
    return found
