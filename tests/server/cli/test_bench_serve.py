"""`ostinato bench serve` on real sockets: its counts against the server's own, errors, table, JSON and page."""

from __future__ import annotations

import json
import socket
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.bench.stub_server import Caller, stub_server
from tests.server.cli.test_main import ostinato
from tests.server.harness import live_server, text_service

QUICK = ["--rate", "inf", "--concurrency", "3", "--requests", "8", "--prompt-tokens", "5:40", "--new-tokens", "2:6"]
ISSUE_KEYS = {"first_token", "inter_token", "end_to_end", "completed_rate", "errors", "asked_rate", "sent_rate"}


def counters(url: str) -> dict[str, float]:
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
    found: dict[str, float] = {}
    for sample in (sample for family in families for sample in family.samples):
        found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def results(*arguments: str) -> dict[str, Any]:
    result = ostinato("bench", "serve", *arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize("options", [[], ["--chat"]], ids=["completions", "chat"])
def test_counts_are_those_of_the_server(options: list[str]) -> None:
    service = text_service(lambda history: 70 + len(history) % 20, max_step_tokens=64, max_queue=64)
    with live_server(service, chat_max_tokens=50) as url:
        found = results(url, "-m", "tiny", *QUICK, *options, "--ignore-eos", "--rate", "inf,50", "--warmup", "2")
        server = counters(url)
    runs, before = found["runs"], found["unmeasured"]
    assert [run["asked_rate"] for run in runs] == [None, 50.0]
    assert before["requests"] == 2 + 2
    for name in ("prompt_tokens", "generated_tokens"):
        assert sum(run[name] for run in runs) + before[name] == server[f"ostinato_{name}_total"]
    for run in runs:
        assert run.keys() >= ISSUE_KEYS
        assert (run["requests"], run["completed"], run["errors"], run["without_usage"]) == (8, 8, {}, 0)
        assert 0 < run["inter_token"]["count"] <= run["generated_tokens"] - 8, (
            "a token is a chunk, unless it shows nothing"
        )
        assert run["first_token"]["count"] == run["end_to_end"]["count"] == 8
        assert run["most_at_once"] <= 3
        assert 0 < run["first_token"]["p50"] <= run["end_to_end"]["max"] <= run["seconds"]
        assert run["generated_tokens_per_second"] * run["seconds"] == pytest.approx(run["generated_tokens"])
    assert runs[0]["generated_tokens"] == runs[1]["generated_tokens"], "the same questions at every rate"
    assert server["ostinato_sequences_total"] == server["ostinato_requests_total"] == 4 + 16
    assert (found["url"], found["model"], found["chat"]) == (f"{url}/v1", "tiny", bool(options))


def test_the_table_says_it_in_a_line_for_each_rate() -> None:
    with live_server(text_service(max_queue=64)) as url:
        result = ostinato("bench", "serve", url, "-m", "tiny", *QUICK, "--rate", "inf,40")
    assert result.exit_code == 0, result.output
    assert f"tiny at {url}/v1" in result.stdout
    rates = [line.split("│")[1].strip() for line in result.stdout.splitlines() if line.count("│") == 9]
    assert rates == ["inf", "40"]
    for words in ("time to first token", "inter-token", "end to end", "p50", "p90", "p99", "mean"):
        assert result.stdout.count(words) == 2
    assert "at 40 requests/s" in result.stdout
    assert "waited until fewer were running (--concurrency)" in result.stdout


def test_a_full_queue_is_counted_not_hidden() -> None:
    with live_server(text_service(slots=1, max_queue=0)) as url:
        found = results(url, "-m", "tiny", "--rate", "inf", "--requests", "12", "--new-tokens", "30", "--ignore-eos")
        (run,) = found["runs"]
        refused = run["errors"]["http_429"]
        assert run["completed"] + refused == 12
        assert refused > 0
        assert "queue" in run["complaints"]["http_429"]
        requests = httpx.get(f"{url}/metrics").text
    assert f'outcome="queue_full",route="/v1/completions"}} {refused}.0' in requests


def chunk(text: str, finish: str | None = None) -> dict[str, object]:
    return {"choices": [{"index": 0, "text": text, "finish_reason": finish}]}


def cuts_every_third(caller: Caller) -> None:
    """But not the probes, which ask for one token."""
    if caller.body["max_tokens"] > 1 and sum(map(ord, caller.body["prompt"])) % 3 == 0:
        caller.stream(chunk("a"), whole=False)
    else:
        caller.stream(chunk("a"), chunk("b", "stop"), "[DONE]")


def test_a_server_that_drops_streams_and_counts_no_tokens() -> None:
    seen: list[bool] = []

    def watched(caller: Caller) -> None:
        if caller.body["max_tokens"] > 1:
            seen.append(sum(map(ord, caller.body["prompt"])) % 3 == 0)
        cuts_every_third(caller)

    with stub_server(watched) as url:
        arguments = (url, "-m", "theirs", "--rate", "inf", "--requests", "30", "--warmup", "0", "--concurrency", "8")
        found = results(*arguments, "--prompt-tokens", "3")
        (run,) = found["runs"]
    assert 0 < sum(seen) < 30 == len(seen)
    assert run["errors"] == {"cut_off": sum(seen)}
    assert run["without_usage"] == run["completed"] == 30 - sum(seen)
    assert (run["generated_tokens"], run["prompt_tokens"]) == (2 * run["completed"], 3 * run["completed"])


def test_what_is_sent() -> None:
    sent: list[tuple[str, str | None, dict[str, Any]]] = []

    def note(caller: Caller) -> None:
        sent.append((caller.path, caller.headers["authorization"], caller.body))
        caller.stream(chunk("a", "stop"), "[DONE]")

    with stub_server(note) as url:
        options = ["--extra", '{"temperature": 0.5}', "--ignore-eos", "--no-usage", "--new-tokens", "9"]
        results(f"{url}/api", "-m", "theirs", "--requests", "1", "--rate", "inf", "--api-key", "sk-1", *options)
    path, key, body = sent[-1]
    assert (path, key) == ("/api/completions", "Bearer sk-1")
    assert len(body.pop("prompt").split()) == 128
    assert body == {"model": "theirs", "max_tokens": 9, "stream": True, "temperature": 0.5, "ignore_eos": True}


def closed_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
        return port


@pytest.mark.parametrize(("status", "message"), [(401, "no such key"), (404, "no such model"), (500, "oh")])
def test_a_server_that_refuses_is_one_clear_message(status: int, message: str) -> None:
    with stub_server(lambda caller: caller.refuse(status, message)) as url:
        result = ostinato("bench", "serve", url, "-m", "theirs", "--api-key", "sk-secret")
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert all(words in line for words in (url, f"http {status}", message))
    assert "sk-secret" not in result.output


def test_our_own_server_without_that_model() -> None:
    with live_server(text_service()) as url:
        result = ostinato("bench", "serve", url, "-m", "another")
    assert result.exit_code == 1
    assert "http 404" in result.stderr
    assert "another" in result.stderr


def test_nobody_there() -> None:
    result = ostinato("bench", "serve", f"http://127.0.0.1:{closed_port()}", "-m", "tiny")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "not connected" in result.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["nowhere", "-m", "tiny"], ["nowhere", "http://127.0.0.1:8000"]),
        (["http://x"], ["--model"]),
        (["http://x", "-m", "tiny", "--rate", "0"], ["--rate"]),
        (["http://x", "-m", "tiny", "--rate", "1,,2"], ["--rate"]),
        (["http://x", "-m", "tiny", "--rate", "nan"], ["--rate"]),
        (["http://x", "-m", "tiny", "--rate", "inf", "--duration", "3"], ["--requests"]),
        (["http://x", "-m", "tiny", "--prompt-tokens", "5:2"], ["--prompt-tokens", "5:2"]),
        (["http://x", "-m", "tiny", "--new-tokens", "x"], ["--new-tokens", "lognormal:200,0.8"]),
        (["http://x", "-m", "tiny", "--requests", "0"], ["--requests"]),
        (["http://x", "-m", "tiny", "--duration", "0"], ["--duration"]),
        (["http://x", "-m", "tiny", "--extra", "[1]"], ["--extra", "object"]),
        (["http://x", "-m", "tiny", "--html", "/no/such/folder/page.html"], ["--html", "/no/such/folder"]),
    ],
    ids=lambda value: "-".join(value[-2:]) if isinstance(value, list) and value[0].startswith("http") else "",
)
def test_a_mistake_is_one_clear_message(options: list[str], words: list[str]) -> None:
    result = ostinato("bench", "serve", *options)
    assert result.exit_code == 2, result.output
    assert not result.stdout
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


def test_help() -> None:
    assert "serve" in ostinato("bench", "--help").output
    assert "--rate" in ostinato("bench", "serve", "--help").output
