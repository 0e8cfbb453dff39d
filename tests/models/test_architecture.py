"""Which architecture a checkpoint is, for the layouts whose configuration does not say it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ostinato.models.architecture import describe_architecture, detect_folder, detect_pth


@pytest.mark.parametrize(
    ("shapes", "version"),
    [
        ({"time_decay": (8,), "time_first": (8,)}, "4"),
        ({"time_decay": (8,), "ln_x.weight": (8,)}, "5.0"),
        ({"time_decay": (2, 1), "ln_x.weight": (8,), "gate.weight": (8, 8)}, "5.1"),
        ({"time_decay": (2, 64), "ln_x.weight": (8,), "gate.weight": (8, 8)}, "5.2"),
        ({"time_maa_x": (1, 1, 8), "ln_x.weight": (8,), "gate.weight": (8, 8)}, "6"),
        ({"r_k": (2, 64), "ln_x.weight": (8,)}, "7"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_rwkv_versions(shapes: dict[str, tuple[int, ...]], version: str) -> None:
    names = {"emb.weight": (9, 8), **{f"blocks.0.att.{name}": shape for name, shape in shapes.items()}}
    name = detect_pth(names, Path("x.pth"))
    assert name == f"rwkv{version}_pth"
    assert describe_architecture(name) == f"RWKV-{version} as .pth file"


@pytest.mark.parametrize(
    ("ssm_cfg", "architecture"),
    [({}, "mamba_ssm"), ({"layer": "Mamba1"}, "mamba_ssm"), ({"layer": "Mamba2"}, "mamba2_ssm")],
)
def test_state_spaces_layouts(ssm_cfg: dict[str, str], architecture: str) -> None:
    config = {"d_model": 8, "n_layer": 1, "ssm_cfg": ssm_cfg}
    assert detect_folder(config, Path("config.json")) == architecture
    assert detect_folder({**config, "architectures": ["A"]}, Path("config.json")) == "A"
