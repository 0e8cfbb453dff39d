"""The files of a checkpoint: weights, their index, configurations, tuned initial states."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Sequence

from ostinato.engine.initial_states import read_initial_state
from ostinato.engine.text.tokenizer import resolve_eos
from ostinato.models.base import Model
from ostinato.models.checkpoint import open_checkpoint
from ostinato.models.errors import CheckpointError
from ostinato.models.fingerprint import config_fingerprint, weights_fingerprint
from ostinato.models.outline import read_outline
from ostinato.models.registry import load_model
from ostinato.models.sources import read_json
from tests.fuzz.samples import GOLDENS, Sample, golden_files, place, put

MOST_BYTES = 1 << 20  # of a sample: whole weight files of tiny checkpoints


def safetensors() -> Sequence[Sample]:
    return _small(golden_files("mamba_hf/model.safetensors", "rwkv7_fla/model.safetensors", "falcon_mamba/model-*.s*"))


def indices() -> Sequence[Sample]:
    return golden_files("*/*.index.json")


def archives() -> Sequence[Sample]:
    return _small(golden_files("*/pytorch_model.bin", "*/R*.pth", "*/rwkv*.pth"))


def initial_states() -> Sequence[Sample]:
    return golden_files("*/time_state.pth")


def configs() -> Sequence[Sample]:
    return golden_files("*/config.json")


def generation_configs() -> Sequence[Sample]:
    return golden_files("*/generation_config.json")


def load_weights(sample: Sample) -> None:
    """As the server loads a model."""
    path = put(sample)
    checkpoint = open_checkpoint(path if path.suffix == ".pth" else path.parent)
    try:
        weights_fingerprint(checkpoint)
        config_fingerprint(checkpoint)
    except BaseException:
        checkpoint.release()
        raise
    load_model(checkpoint)


def load_state(sample: Sample) -> None:
    read_initial_state(put(sample), _model(sample.of.replace("_state/", "_pth/").partition("/")[0]))


def read_config(sample: Sample) -> None:
    """With the weights beside it and, if those are taken or refused, without."""
    path = put(sample)
    try:
        read_outline(path.parent)
    except CheckpointError:
        pass
    else:
        config_fingerprint(open_checkpoint(path.parent))
    alone = place("config-alone")
    shutil.copy(path, alone / "config.json")
    read_outline(alone)


def read_eos(sample: Sample) -> None:
    resolve_eos({}, read_json(put(sample)), None)


@functools.cache
def _model(golden: str) -> Model:
    (path,) = (GOLDENS / golden).glob("*.pth")
    return load_model(open_checkpoint(path))


def _small(samples: Sequence[Sample]) -> list[Sample]:
    return [sample for sample in samples if len(sample.data) <= MOST_BYTES]
