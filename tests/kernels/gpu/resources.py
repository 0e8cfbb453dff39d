"""What every Triton kernel needs on every GPU generation, and the committed table of it.

`python -m tests.kernels.gpu.resources` prints it as JSON; `--write` makes it the table. It needs no GPU. Where a
change makes a figure worse on purpose, the new table is part of that change.
"""

import argparse
import functools
import importlib
import json
import os
import pkgutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import product
from pathlib import Path

from ostinato.kernels import gpu
from ostinato.kernels.gpu.compile import CAPABILITIES, CompileCase, compile_case

TABLE = Path(__file__).with_name("resources.json")
Figures = dict[str, dict[str, int]]  # "name @ capability" -> registers, spills, shared


@functools.cache
def cases() -> list[CompileCase]:
    """Those of every module in `ostinato.kernels.gpu`. Raises ValueError: two have one name."""
    modules = [importlib.import_module(name) for _, name, _ in pkgutil.iter_modules(gpu.__path__, f"{gpu.__name__}.")]
    found = [case for module in modules if hasattr(module, "compile_cases") for case in module.compile_cases()]
    if len({case.name for case in found}) != len(found):
        raise ValueError(f"names must be unique: {sorted(case.name for case in found)}")
    return found


def measure(processes: int) -> Figures:
    """Compiles every case for every capability, with a cache of its own."""
    pairs = list(product(range(len(cases())), CAPABILITIES))
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        with ProcessPoolExecutor(processes) as pool:
            return dict(pool.map(_measure_one, pairs))


def _measure_one(pair: tuple[int, int]) -> tuple[str, dict[str, int]]:
    index, capability = pair
    case = cases()[index]
    return f"{case.name} @ sm_{capability}", asdict(compile_case(case, capability))


def exceeded(found: Figures, allowed: Figures) -> Iterator[str]:
    """In words, what is worse in `found` than in `allowed`, missing from either, or spilled."""
    for name in sorted(found.keys() ^ allowed.keys()):
        yield f"{name} is only in {'the kernels' if name in found else 'the table'}"
    for name in sorted(found.keys() & allowed.keys()):
        for what, value in found[name].items():
            limit = 0 if what == "spills" else allowed[name][what]
            if value > limit:
                yield f"{name}: {value} {what}, {limit} allowed"


def main() -> None:
    """Prints the figures or the kernels' names, or writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}")
    parser.add_argument("--kernels", action="store_true", help="only list the kernels")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    if options.kernels:
        print(json.dumps(sorted({case.kernel.__name__ for case in cases()})))
        return
    text = json.dumps(measure(options.processes), indent=1, sort_keys=True) + "\n"
    if options.write:
        TABLE.write_text(text)
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
