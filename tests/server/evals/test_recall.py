"""`ostinato eval recall` as it is used: in this process and against a server, tables, JSON and plot, and mistakes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ostinato.server.evals.errors import PlotError
from ostinato.server.evals.plot import draw
from tests.server.cli.test_main import ostinato
from tests.server.harness import GLA, live_server, real_service

SMALL = ["--task", "facts", "--task", "passkey", "--facts", "2,3", "--questions", "4", "--repeat", "1,2,3"]


def result_of(*options: str | Path) -> Any:
    result = ostinato("eval", "recall", *options, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def without_time(report: Any) -> Any:
    return {**report, "model": "", "points": [{**point, "seconds": 0} for point in report["points"]]}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    service = real_service(GLA, prefix_cache=2**24)
    with live_server(service, served_model_name="tiny", max_body_bytes=10_000) as address:
        yield f"{address}/v1"


@pytest.fixture(scope="module")
def here() -> Any:
    """The results of a model in this process."""
    return result_of(GLA, *SMALL)


def test_a_model_in_this_process(here: Any) -> None:
    assert {key: here[key] for key in ("model", "form", "seed", "cache_prompt", "concurrency")} == {
        "model": "gla",
        "form": "qccq",
        "seed": 0,
        "cache_prompt": False,
        "concurrency": 32,
    }
    places = [(point["task"], point["facts"], point["repeat"]) for point in here["points"]]
    assert places == [(task, facts, times) for task in ("facts", "passkey") for facts in (2, 3) for times in (1, 2, 3)]
    for point in here["points"]:
        assert point["questions"] == 4
        assert point["cached_tokens"] == 0
        assert point["seconds"] > 0
        assert point["read_tokens"] == point["prompt_tokens"] > 0
    first, second, third = (point["read_tokens"] for point in here["points"][:3])
    assert 1.5 * first < second < third


def test_a_running_server_gives_the_same(here: Any, url: str) -> None:
    there = result_of("--url", url, *SMALL)
    assert there["model"] == "tiny"
    assert without_time(there) == without_time(here)
    assert without_time(result_of("--url", url, "--model", "tiny", "--api-key", "k", *SMALL)) == without_time(here)


def test_the_prefix_cache_is_counted_where_it_is_asked_for(here: Any, url: str) -> None:
    """In the order `ccq` a prompt begins with the context, whose first reading an earlier request has left."""
    options = ["--form", "ccq", "--concurrency", "1", "--cache-prompt"]
    cached = result_of("--url", url, *SMALL, *options)
    by_place = {(point["task"], point["facts"], point["repeat"]): point for point in cached["points"]}
    for (_, _, times), point in by_place.items():
        assert point["prompt_tokens"] == point["read_tokens"] + point["cached_tokens"]
        assert (point["cached_tokens"] > 0) or times == 1
    once, twice = by_place["passkey", 3, 1], by_place["passkey", 3, 2]
    assert twice["read_tokens"] < once["prompt_tokens"] + 4 * 8, "of two readings the first came from a state"


def test_published_rows_are_asked(tmp_path: Path) -> None:
    rows = [{"text": f"Film {n}. Year 19{n}.", "key": "year", "value": f"19{n}"} for n in range(10, 15)]
    (tmp_path / "based-fda.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = result_of(GLA, "--task", "fda", "--data", tmp_path, "--repeat", "1,2", "--questions", "3")
    assert [(point["facts"], point["questions"], point["chance"]) for point in found["points"]] == [(None, 3, None)] * 2
    assert list(found["points"][0]["scores"]) == ["contains"]


def test_the_tables(tmp_path: Path) -> None:
    quick = ["--task", "mqar", "--facts", "2", "--questions", "3", "--repeat", "1,2", "--seed", "5"]
    result = ostinato("eval", "recall", GLA, *quick, "--output", tmp_path / "out.json")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "out.json").read_text())
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if "│ mqar" in line]
    assert [row[:3] for row in rows] == [["mqar", "2", "1 x"], ["mqar", "2", "2 x"], ["mqar", "2", "2 x - 1 x"]]
    for row, point in zip(rows, report["points"], strict=False):
        assert row[3] == f"{100 * point['accuracy']:.1f}"
        assert row[6] == f"{point['read_tokens']:,}"
    assert report["seed"] == 5


@pytest.mark.parametrize("name", ["plot.svg", "plot.png"])
def test_the_plot(tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'ostinato[plot]'")
    quick = ["--task", "mqar", "--task", "facts", "--facts", "2,4", "--questions", "2", "--repeat", "1,2"]
    assert ostinato("eval", "recall", GLA, *quick, "--plot", tmp_path / name).exit_code == 0
    drawn = (tmp_path / name).read_bytes()
    if name.endswith("svg"):
        for words in (b"mqar", b"facts", b"read 2 x", b"gla, read again as qccq"):
            assert words in drawn
    else:
        assert drawn.startswith(b"\x89PNG")


def test_the_same_points_make_the_same_picture(tmp_path: Path, here: Any) -> None:
    from ostinato.server.evals.run import Point

    points = [Point(**point) for point in here["points"]]
    points.append(Point(**{**here["points"][0], "task": "fda", "facts": None, "chance": None}))
    for name in ("a.svg", "b.svg"):
        draw(points, "title", tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    with pytest.raises(PlotError, match="cannot be written"):
        draw(points, "title", tmp_path / "none" / "a.svg")


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--task", "chess"], 2, ["no task 'chess'", "phonebook"]),
        (["--facts", "0,2"], 2, ["--facts", "from 1 on"]),
        (["--facts", "two"], 2, ["--facts", "1,2,4"]),
        (["--repeat", "1,1"], 2, ["--repeat", "once"]),
        (["--repeat", "9"], 2, ["--repeat", "8 times at most"]),
        (["--form", "qq"], 2, ["--form", "qccq, cqcq, ccq"]),
        (["--task", "facts", "--facts", "64"], 2, ["facts has at most 40 facts"]),
        (["--task", "squad", "--form", "ccq"], 2, ["squad can be read again in the form qccq only"]),
        (["--task", "drop", "--data", "/no/such"], 1, ["/no/such has no hazyresearch/based_drop"]),
        (["--questions", "0"], 2, ["--questions"]),
        (["--plot", "p.pdf"], 1, ["p.pdf", ".png or .svg"]),
        (["--api-key", "k"], 2, ["--api-key", "--url"]),
        (["--model", "m"], 2, ["--model", "--url"]),
        (["--device", "abacus", "--task", "mqar"], 2, ["abacus"]),
    ],
    ids=lambda value: "-".join(value[:2]) if isinstance(value, list) and value[0].startswith("-") else "",
)
def test_a_mistake_is_one_clear_message(options: list[str], code: int, words: list[str]) -> None:
    result = ostinato("eval", "recall", GLA, *options)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert not result.stdout
    for word in words:
        assert word in result.stderr


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ([GLA], 2, ["model", "the server at --url has its own"]),
        (["--dtype", "float32"], 2, ["--dtype", "the server at --url has its own"]),
        (["--model", "other"], 1, ["404", "'other' does not exist"]),
        (["--task", "phonebook", "--facts", "800"], 1, ["413"]),
    ],
    ids=["model", "dtype", "name", "body"],
)
def test_a_mistake_with_a_server(url: str, options: list[Any], code: int, words: list[str]) -> None:
    result = ostinato("eval", "recall", "--url", url, "--questions", "1", *options)
    assert result.exit_code == code, result.output
    assert not result.stdout
    for word in words:
        assert word in result.stderr


def test_nobody_there() -> None:
    result = ostinato("eval", "recall", "--url", "http://127.0.0.1:9/v1", "--task", "mqar")
    assert result.exit_code == 1
    assert "http://127.0.0.1:9/v1/ cannot be asked" in result.stderr


def test_without_matplotlib_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = ostinato("eval", "recall", "/no/such/model", "--plot", "p.svg")
    assert result.exit_code == 1
    assert "pip install 'ostinato[plot]'" in result.stderr


def test_without_pyarrow_parquet_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "based-fda.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = ostinato("eval", "recall", "/no/such/model", "--task", "fda", "--data", tmp_path)
    assert result.exit_code == 1
    assert "pip install 'ostinato[parquet]'" in result.stderr


@pytest.mark.parametrize("arguments", [["eval"], ["eval", "--help"], ["eval", "recall", "--help"]])
def test_help(arguments: list[str]) -> None:
    assert "recall" in ostinato(*arguments).output
