"""The published tasks on made-up rows: templates letter for letter, scores, and where the rows come from.

The prompts that are expected are written by hand after the authors' description: read twice, the natural question (or
what is looked for) opens, the context comes twice, and the cloze form (or the key) closes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from ostinato.engine.errors import RequestError
from ostinato.server.evals.datasets import sample_rows
from ostinato.server.evals.errors import DataError
from ostinato.server.evals.published import PUBLISHED
from ostinato.server.evals.scoring import contains, contains_and_squad, whole_line
from ostinato.server.evals.tasks import sheets
from tests.server.evals.test_tasks import prompt_of

ASK = {each.task.name: each.ask for each in PUBLISHED}
QA = {
    "context": "The mill stands by the river. It is red. ",
    "question": "The mill stands by the",
    "orig_question": "Where is the mill?:",
    "answers": ["river", "brook"],
}
ROWS: dict[str, dict[str, Any]] = {
    "fda": {
        "text": "\nDevice: Pump.\nPurpose: Clearance..device class:Device Class:",
        "key": "device class",
        "value": "II",
    },
    "swde": {
        "text": "A film. Director Ann. \nyear:YEAR:Summary of information above... year:",
        "key": "year",
        "value": "1951",
    },
    "nq-512": QA,
    "nq-1024": QA,
    "nq-2048": QA,
    "triviaqa": {**QA, "context": "[DOC] [TLE] Mills [PAR]The mill stands by the river."},
    "drop": {**QA, "context": "The mill stands by the river. the mill stands by the"},
    "squad": {
        "text": "The mill is red. The colour of the mill is ",
        "context": "The mill is red.Question: what?",
        "question": "Which colour has the mill?",
        "value": "red",
    },
}
ONCE = {
    "fda": "Device: Pump.\nPurpose: Clearance. Device class:",
    "swde": "A film. Director Ann. Year:",
    "nq-512": "The mill stands by the river. It is red. The mill stands by the",
    "triviaqa": "Mills The mill stands by the river. The mill stands by the",
    "drop": "The mill stands by the river. The mill stands by the",
    "squad": "The mill is red. The colour of the mill is",
}
TWICE = {
    "fda": "Information about Device class. Device: Pump.\nPurpose: Clearance.\n"
    "Device: Pump.\nPurpose: Clearance. Device class:",
    "swde": "Information about Year. A film. Director Ann.\nA film. Director Ann. Year:",
    "nq-512": "Where is the mill? The mill stands by the river. It is red.\n"
    "The mill stands by the river. It is red. The mill stands by the",
    "triviaqa": "Where is the mill?: Mills The mill stands by the river.\n"
    "Mills The mill stands by the river. The mill stands by the",
    "drop": "Where is the mill? The mill stands by the river.\nThe mill stands by the river. The mill stands by the",
    "squad": "Which colour has the mill? The mill is red.\nThe mill is red. The colour of the mill is",
}


@pytest.mark.parametrize("name", ONCE)
def test_the_templates(name: str) -> None:
    ask, row = ASK[name], ROWS[name]
    assert prompt_of(ask(row, False), "qccq", 1) == ONCE[name]
    assert prompt_of(ask(row, True), "qccq", 2) == TWICE[name]


def test_all_lengths_of_natural_questions_are_asked_alike() -> None:
    assert ASK["nq-512"] is ASK["nq-1024"] is ASK["nq-2048"]


@pytest.mark.parametrize("name", [name for name in ONCE if name != "fda"])
def test_a_third_reading_is_the_context_once_more(name: str) -> None:
    question = ASK[name](ROWS[name], True)
    opening, closing = prompt_of(question, "qccq", 2).split("\n")
    assert prompt_of(question, "qccq", 3) == f"{opening}\n{question.context}\n{closing}"


def test_in_natural_questions_once_the_question_is_cut_once_and_by_case() -> None:
    row = {**QA, "context": "It is red. the mill stands by theThe mill stands by the"}
    once, twice = (prompt_of(ASK["nq-512"](row, again), "qccq", 1 + again) for again in (False, True))
    assert once == "It is red. the mill stands by the. The mill stands by the"
    assert twice == "Where is the mill? It is red.\nIt is red. The mill stands by the"


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("fda", {"key": None}, "no text 'key'"),
        ("drop", {"orig_question": 3}, "no text 'orig_question'"),
        ("triviaqa", {"answers": []}, "no list of texts 'answers'"),
        ("triviaqa", {"answers": ["a", 1]}, "no list of texts 'answers'"),
        ("nq-512", {"answers": "river"}, "no list of texts 'answers'"),
        ("squad", {"context": None}, "no text 'context'"),
    ],
)
def test_other_rows_are_refused(name: str, changes: dict[str, object], words: str) -> None:
    with pytest.raises(RequestError, match=words):
        ASK[name]({**ROWS[name], **changes}, True)


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        (" The RIVER, of course", ("river",), 1.0),
        (" a brook", ("river", "brook"), 1.0),
        (" riv er", ("river",), 0.0),
        ("", ("river",), 0.0),
        ("it costs $4.50 (about)", ("$4.50 (about)",), 1.0),  # no pattern, a text
        ("it costs $4x50 (about)", ("$4.50 (about)",), 0.0),
    ],
)
def test_contains(answer: str, gold: tuple[str, ...], right: float) -> None:
    assert contains(answer, gold) == {"contains": right}


@pytest.mark.parametrize(
    ("answer", "gold", "exact", "f1"),
    [
        ("The river!", ("a River",), 1.0, 1.0),
        ("the old river", ("river",), 0.0, 2 / 3),
        ("river river", ("the river bank",), 0.0, 1 / 2),
        ("sea", ("river", "the sea"), 1.0, 1.0),
        ("the", ("a",), 1.0, 1.0),
        ("the", ("river",), 0.0, 0.0),
        ("anaconda theatre", ("conda",), 0.0, 0.0),  # articles are words of their own
    ],
)
def test_exact_and_f1(answer: str, gold: tuple[str, ...], exact: float, f1: float) -> None:
    scores = contains_and_squad(answer, gold)
    assert list(scores) == ["contains", "exact", "f1"]
    assert (scores["exact"], scores["f1"]) == pytest.approx((exact, f1))


@pytest.mark.parametrize(
    ("answer", "right"),
    [(" 4821", 1.0), ("\n 4821.\nAnna: 7", 1.0), (" 48213", 0.0), (" 4821 and", 0.0), ("", 0.0)],
)
def test_the_whole_line_has_to_be_right(answer: str, right: float) -> None:
    assert whole_line(answer, ("4821",)) == {"exact": right}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    "name",
    [
        "based_drop.jsonl",
        "based_drop.parquet",
        "based_drop/validation.jsonl",
        "based_drop/data/validation-00000-of-00001.parquet",
    ],
)
def test_rows_come_from_a_folder(tmp_path: Path, name: str) -> None:
    rows = [{**ROWS["drop"], "question": f"number {n} is"} for n in range(40)]
    write_rows(tmp_path / name, rows)
    if "/" in name:
        write_rows(tmp_path / "based_drop" / "train.jsonl", [{"text": "of another split"}])
    (sheet,) = sheets(["drop"], [2], 500, 0, tmp_path)
    assert [question.question for question in sheet.once] == [row["question"] for row in rows]
    assert sheet.facts is None
    few = sample_rows("hazyresearch/based_drop", tmp_path, 10, 0)
    assert len(few) == 10
    assert few == [row for row in rows if row in few], "in their order"
    assert few == sample_rows("hazyresearch/based_drop", tmp_path, 10, 0)
    assert few != sample_rows("hazyresearch/based_drop", tmp_path, 10, 1)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "neither based-fda.jsonl nor based-fda.parquet nor a folder based-fda"),
        ({"based-fda.jsonl": ""}, "no rows"),
        ({"based-fda.jsonl": '{"text": "x"}\nnot json'}, r"line 2: not JSON"),
        ({"based-fda.jsonl": "[1]"}, "line 1: not a JSON object"),
        ({"based-fda.parquet": "not parquet"}, "not a parquet file"),
        ({"based-fda/train.jsonl": "{}"}, "no file .*validation"),
        ({"based-fda.jsonl": '{"text": "x"}'}, "no text 'key': its fields are text"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(tmp_path: Path, files: dict[str, str], words: str) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises((DataError, RequestError), match=words):
        sheets(["fda"], [2], 5, 0, tmp_path)


def test_without_the_hub_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DataError, match=r"hazyresearch/based-fda cannot be had from the hub .*--data"):
        sheets(["fda"], [2], 5, 0, None)
