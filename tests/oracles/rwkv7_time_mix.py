"""One RWKV-7 time mix by the authors' `rwkv` package, from its input to its output projection, fp32.

    python -m tests.oracles.rwkv7_time_mix INPUTS OUTPUTS

Both files are safetensors. INPUTS holds the arguments of the package's function by name, and `layer`: which of the two
kinds of layer it is, the first (0) or a later one. OUTPUTS: y [T, C], last [C], state [H, V, K], v_first [T, C].
"""

from __future__ import annotations

import contextlib
import os
import sys

os.environ["PYTORCH_JIT"] = "0"  # read when torch is imported
os.environ.update(RWKV_V7_ON="1", RWKV_CUDA_ON="0")  # read when the package is imported

from safetensors.torch import load_file, save_file

with contextlib.redirect_stdout(sys.stderr):  # it prints a banner when imported
    from rwkv.model import RWKV_x070_TMix_seq

MIXES = ["x_r", "x_w", "x_k", "x_v", "x_a", "x_g"]
LOW_RANK = ["w0", "w1", "w2", "a0", "a1", "a2", "v0", "v1", "v2", "g1", "g2"]
REST = ["k_k", "k_a", "r_k", "R_", "K_", "V_", "O_", "ln_w", "ln_b"]


def main(inputs: str, outputs: str) -> None:
    x = load_file(inputs)
    heads, width, _ = x["state"].shape
    arguments = [x[name] for name in ("x", "x_prev", "v_first", "state", *MIXES, *LOW_RANK, *REST)]
    y, last, state, v_first = RWKV_x070_TMix_seq(int(x["layer"]), heads, width, *arguments)
    found = {"y": y, "last": last, "state": state, "v_first": v_first}
    save_file({name: tensor.clone().contiguous() for name, tensor in found.items()}, outputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
