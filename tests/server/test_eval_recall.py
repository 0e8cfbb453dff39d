"""`ostinato eval recall`: what it asks a server, what it makes of the answers, and what it refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from ostinato.server.evals import asking
from ostinato.server.evals.asking import Server
from ostinato.server.evals.errors import AskError, PlotError
from ostinato.server.evals.plot import draw
from ostinato.server.evals.question import Question, Task
from ostinato.server.evals.run import Plan, Report, Sheet, measure
from ostinato.server.evals.scoring import whole_line
from tests.server.harness import GLA, live_server, real_service
from tests.server.test_cli import ostinato

SMALL = ["--task", "facts", "--task", "passkey", "--facts", "2,3", "--questions", "4", "--repeat", "1,2,3"]
TASK = Task("colours", "made up", whole_line, 5)


class Knowing:
    """An HTTP server that answers each question as the table says, by how often the context is read."""

    def __init__(self, right: Mapping[int, set[str]]) -> None:
        self.right = right
        self.bodies: list[dict[str, Any]] = []
        self.under_way = self.most = 0
        self.app = FastAPI()
        self.app.post("/v1/completions")(self.complete)

    async def complete(self, request: Request) -> JSONResponse:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        body = await request.json()
        self.bodies.append(body)
        repeat = body["repeat"]
        times = repeat["order"].count("c")
        text = " yes" if repeat["question"] in self.right[times] else " no"
        usage = {"prompt_tokens": 10 * times, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": times}}
        self.under_way -= 1
        return JSONResponse({"choices": [{"text": text}], "usage": usage})

    def server(self) -> Server:
        transport = httpx.ASGITransport(self.app)
        return Server(httpx.AsyncClient(transport=transport, base_url="http://test/v1"), "a-model")


def plan_of(names: str, repeats: tuple[int, ...], **changes: Any) -> Plan:
    questions = [Question(f"text {name}", name, ("yes",), opening="o", chance=0.5) for name in names]
    sheet = Sheet(TASK, 7, questions, questions)
    return Plan(**{"sheets": [sheet], "repeats": repeats, "form": "qccq", "concurrency": 3, "cache": False, **changes})


def silent(*_: object) -> None:
    """No progress bar."""


@pytest.mark.asyncio
async def test_points_and_gains_are_counted() -> None:
    knowing = Knowing({1: set("abc"), 2: set("bcdefg"), 3: set("abcdefgh")})
    report = await measure(knowing.server(), plan_of("abcdefgh", (1, 2, 3)), silent)
    assert [(point.repeat, point.right, point.accuracy) for point in report.points] == [
        (1, 3, 3 / 8),
        (2, 6, 6 / 8),
        (3, 8, 1.0),
    ]
    for point in report.points:
        assert (point.task, point.facts, point.questions, point.chance) == ("colours", 7, 8, 0.5)
        assert point.low < point.accuracy <= point.high
        assert point.scores == {"exact": point.accuracy}
        assert point.prompt_tokens == 80 * point.repeat
        assert point.cached_tokens == 8 * point.repeat
        assert point.read_tokens == 72 * point.repeat
        assert point.completion_tokens == 16
    gains = [(gain.what, gain.won, gain.lost, gain.difference) for gain in report.comparisons]
    assert gains == [("2 x - 1 x", 4, 1, 3 / 8), ("3 x - 1 x", 5, 0, 5 / 8)]
    assert report.comparisons[0].p_value == pytest.approx(0.375)  # 2 (1 + 5) / 32
    assert all(gain.low < gain.difference < gain.high for gain in report.comparisons)


@pytest.mark.asyncio
async def test_what_is_sent() -> None:
    knowing = Knowing({1: set(), 2: set()})
    await measure(knowing.server(), plan_of("a", (1, 2), cache=True), silent)
    common = {"model": "a-model", "max_tokens": 5, "temperature": 0, "stop": "\n", "cache_prompt": True}
    parts = {"context": "text a", "question": "a", "separator": "\n", "join": " "}
    assert knowing.bodies == [
        {**common, "repeat": {**parts, "order": "cq"}},
        {**common, "repeat": {**parts, "order": "qccq", "opening": "o"}},
    ]


@pytest.mark.asyncio
async def test_the_same_sets_in_both_orders_are_compared() -> None:
    sheets = []
    for name, asked in (("disjoint-small", "abcd"), ("disjoint-large", "wxyz")):
        questions = [Question("text", letter, ("yes",)) for letter in asked]
        sheets.append(Sheet(Task(name, "", whole_line, 5), 4, questions, questions))
    knowing = Knowing({1: set("abcw"), 2: set("awx")})
    report = await measure(knowing.server(), plan_of("", (1, 2), sheets=sheets), silent)
    orders = [(each.what, each.won, each.lost) for each in report.comparisons if each.task == "disjoint"]
    assert orders == [("small - large, 1 x", 2, 0), ("small - large, 2 x", 0, 1)]


@pytest.mark.asyncio
async def test_so_many_questions_are_under_way() -> None:
    knowing = Knowing({1: set()})
    seen: list[tuple[str, int, int]] = []
    await measure(knowing.server(), plan_of("abcdefghijkl", (1,)), lambda *report: seen.append(report))
    assert knowing.most <= 3
    assert seen == [("colours 7 facts x1", done, 12) for done in range(13)]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("status", "content", "words"),
    [
        (400, {"error": {"message": "no repeat here"}}, "answers 400: no repeat here"),
        (401, {"detail": "who?"}, "answers 401: {'detail': 'who\\?'}"),
        (200, {"choices": []}, "does not answer as an Ostinato server does"),
        (500, None, "answers 500 without JSON"),
    ],
)
async def test_a_server_that_refuses(status: int, content: Any, words: str) -> None:
    def refuse(_: httpx.Request) -> httpx.Response:
        return httpx.Response(status, json=content) if content is not None else httpx.Response(status, text="oops")

    client = httpx.AsyncClient(transport=httpx.MockTransport(refuse), base_url="http://test/v1")
    with pytest.raises(AskError, match=words):
        await measure(Server(client, "m"), plan_of("abc", (1,)), silent)


@pytest.mark.asyncio
async def test_a_full_queue_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = [2, 0, 0]
    waited = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    def answer(_: httpx.Request) -> httpx.Response:
        if busy:
            return httpx.Response(429, headers={"retry-after": str(busy.pop(0))})
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 0}}
        return httpx.Response(200, json={"choices": [{"text": "x"}], "usage": usage})

    monkeypatch.setattr(asking.asyncio, "sleep", sleep)
    client = httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://test/v1")
    assert (await Server(client, "m").ask({"prompt": "x"}, 1, cache=False)).text == "x"
    assert waited == [2.0, 0.0, 0.0]
    busy.extend([0] * 100)
    with pytest.raises(AskError, match="busy 10 times: lower --concurrency"):
        await Server(client, "m").ask({"prompt": "x"}, 1, cache=False)


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
        (["--form", "qq"], 2, ["--form", "qccq, cqcq or ccq"]),
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
        ([GLA], 2, ["MODEL", "the server at --url has its own"]),
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


def test_an_empty_report_is_an_object() -> None:
    assert Report().as_object() == {"points": [], "comparisons": []}


@pytest.mark.parametrize("arguments", [["eval"], ["eval", "--help"], ["eval", "recall", "--help"]])
def test_help(arguments: list[str]) -> None:
    assert "recall" in ostinato(*arguments).output
