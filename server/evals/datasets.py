"""Rows of the published data sets, from a local folder or from the hub.

In the folder, `hazyresearch/based-fda` is `based-fda.jsonl`, `based-fda.parquet`, or a folder `based-fda` as a download
from the hub makes it, of which the files of the split `validation` count. Parquet needs pyarrow.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from ostinato.server.evals.errors import DataError
from ostinato.server.evals.published import Row

SPLIT = "validation"
FORMATS = (".jsonl", ".parquet")


def sample_rows(dataset: str, folder: Path | None, count: int, seed: int) -> list[Row]:
    """Up to `count` rows, in their order: all of them where there are not more. Raises DataError."""
    files = _in_snapshot(dataset) if folder is None else _in_folder(dataset, folder)
    rows = [row for path in files for row in _read(path)]
    if not rows:
        raise DataError(f"{dataset}: no rows in {', '.join(map(str, files))}")
    chosen = random.Random(f"{seed} {dataset}").sample(range(len(rows)), min(count, len(rows)))
    return [rows[index] for index in sorted(chosen)]


def _in_snapshot(dataset: str) -> list[Path]:
    from huggingface_hub import snapshot_download

    try:
        snapshot = snapshot_download(dataset, repo_type="dataset", allow_patterns=[f"*{SPLIT}*"])
    except Exception as error:  # the library documents no closed set: HTTP, disk and validation errors
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DataError(
            f"the data set {dataset} cannot be had from the hub ({reason}); "
            f"name a folder that has it as {_name(dataset)}.jsonl or .parquet with --data"
        ) from error
    return _of_split(Path(snapshot), dataset)


def _in_folder(dataset: str, folder: Path) -> list[Path]:
    name = _name(dataset)
    for suffix in FORMATS:
        if (folder / f"{name}{suffix}").is_file():
            return [folder / f"{name}{suffix}"]
    if (folder / name).is_dir():
        return _of_split(folder / name, dataset)
    raise DataError(f"{folder} has no {dataset}: neither {name}.jsonl nor {name}.parquet nor a folder {name}")


def _of_split(folder: Path, dataset: str) -> list[Path]:
    """All files of the split, of one format."""
    for suffix in FORMATS:
        if found := sorted(folder.rglob(f"*{SPLIT}*{suffix}")):
            return found
    raise DataError(f"{folder} has no {dataset}: no file *{SPLIT}*.jsonl or *{SPLIT}*.parquet in it")


def _name(dataset: str) -> str:
    return dataset.rpartition("/")[2]


def _read(path: Path) -> list[Row]:
    return _read_parquet(path) if path.suffix == ".parquet" else _read_lines(path)


def _read_lines(path: Path) -> list[Row]:
    rows: list[Row] = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}, line {number}: not JSON ({error})") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: not a JSON object")
            rows.append(row)
    return rows


def _read_parquet(path: Path) -> list[Row]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise DataError(f"{path}: reading parquet needs pyarrow: pip install 'ostinato[parquet]'") from error
    try:
        rows: list[Row] = parquet.read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        raise DataError(f"{path}: not a parquet file ({error})") from error
    return rows
