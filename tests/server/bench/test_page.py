"""The page that `ostinato bench serve --html` writes: one file, which fetches nothing."""

from __future__ import annotations

import json
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.server.cli.test_bench_serve import QUICK, results
from tests.server.cli.test_main import ostinato
from tests.server.harness import live_server, text_service


def test_without_matplotlib_nothing_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # an import of it fails
    page = tmp_path / "page.html"
    result = ostinato("bench", "serve", "http://127.0.0.1:1", "-m", "tiny", "--html", page)
    assert (result.exit_code, result.stdout, page.exists()) == (1, "", False)
    assert "pip install 'ostinato[plot]'" in result.stderr


class Page(HTMLParser):
    """What a page fetches, and the text of its table cells and of its JSON."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.cells: list[str] = []
        self.carried = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        links = [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        self.fetched += [link for link in links if not link.startswith("#")] + (["link"] if tag == "link" else [])

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["td"]:
            self.cells.append(data)
        if self.open[-1:] == ["script"]:
            self.carried += data


@pytest.mark.parametrize(("rates", "by_rate"), [("inf", False), ("inf,60,40", True), ("inf,60", False)])
def test_the_page_needs_nothing_else(tmp_path: Path, rates: str, by_rate: bool) -> None:
    file = tmp_path / "page.html"
    with live_server(text_service(max_queue=64)) as url:
        found = results(
            url, "-m", "tiny", *QUICK, "--rate", rates, "--html", str(file), "--extra", '{"user": "</script>"}'
        )
    text = file.read_text(encoding="utf-8")
    page = Page(text)
    assert page.fetched == []
    assert "default-src 'none'" in text
    assert json.loads(page.carried) == found
    assert f"{url}/v1" in page.cells
    for run in found["runs"]:
        assert str(run["requests"]) in page.cells
    svg = ElementTree.fromstring(text[text.index("<svg") : text.index("</svg>") + len("</svg>")])
    words = {"".join(element.itertext()) for element in svg.iter("{http://www.w3.org/2000/svg}text")}
    titles = {"time to first token", "inter-token", "end to end", "requests at once"}
    several = {"time to first token by rate", "completed by rate"}
    assert words >= titles | (several if by_rate else set())
    assert bool(words & several) == by_rate
