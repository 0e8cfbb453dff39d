"""What a load has shown, in numbers: throughput, latencies, errors, and whether the client kept up with what was asked.

Throughput is what was completed over the time from the start to the end of the last answer. Latencies are of completed
requests, in seconds; the `from_sending` ones leave out how late the client was. Quantiles are interpolated linearly.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy

from ostinato.server.bench.client import Exchange
from ostinato.server.bench.run import Run

LATE_SHARE, LATE_SECONDS = 0.1, 0.01


@dataclass(frozen=True, slots=True)
class Spread:
    """A distribution of seconds."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Spread | None:
        """None of nothing."""
        values = numpy.fromiter(seconds, dtype=numpy.float64)
        if not values.size:
            return None
        p50, p90, p99 = (float(value) for value in numpy.percentile(values, (50, 90, 99)))
        return cls(values.size, float(values.mean()), p50, p90, p99, float(values.max()))


@dataclass(frozen=True, slots=True)
class Samples:
    """The seconds of every completed request of a run, and the gaps between the chunks of each."""

    first_token: list[float]
    first_token_from_sending: list[float]
    inter_token: list[float]
    time_per_token: list[float]
    end_to_end: list[float]
    end_to_end_from_sending: list[float]

    @classmethod
    def of(cls, run: Run) -> Samples:
        done = [told for told in run.exchanges if told.error is None]
        spoken = [told for told in done if told.chunks]
        return cls(
            first_token=[told.chunks[0] - told.due for told in spoken],
            first_token_from_sending=[told.chunks[0] - told.sent for told in spoken],
            inter_token=[after - before for told in spoken for before, after in pairwise(told.chunks)],
            time_per_token=[_time_per_token(told) for told in spoken if told.new_tokens > 1],
            end_to_end=[told.ended - told.due for told in done],
            end_to_end_from_sending=[told.ended - told.sent for told in done],
        )


def _time_per_token(told: Exchange) -> float:
    """Of the tokens after the first."""
    return (told.chunks[-1] - told.chunks[0]) / (told.new_tokens - 1)


@dataclass(frozen=True, slots=True)
class RunReport:
    """One rate. Rates in requests/s; asked_rate: None if unbounded; drawn_rate: of the arrivals that chance made of it;
    sent_rate: at which requests really left; completed_rate: throughput.

    seconds: from the start to the last end. waited_for_a_place: requests that the bound on requests at once held back.
    errors: requests by what went wrong; complaints: the first one of each kind, in words. without_usage: completed
    requests whose tokens the server did not count; their chunks stand for generated tokens, their words for prompt
    tokens. late: seconds between when requests were due and when they left. fell_behind: that this matters.
    """

    asked_rate: float | None
    drawn_rate: float | None
    sent_rate: float | None
    completed_rate: float
    seconds: float
    requests: int
    completed: int
    errors: dict[str, int]
    complaints: dict[str, str]
    prompt_tokens: int
    generated_tokens: int
    prompt_tokens_per_second: float
    generated_tokens_per_second: float
    without_usage: int
    most_at_once: int
    waited_for_a_place: int
    fell_behind: bool
    late: Spread | None
    first_token: Spread | None
    first_token_from_sending: Spread | None
    inter_token: Spread | None
    time_per_token: Spread | None
    end_to_end: Spread | None
    end_to_end_from_sending: Spread | None


LATENCIES = {
    "first_token": "time to first token",
    "first_token_from_sending": "  from sending",
    "inter_token": "inter-token",
    "time_per_token": "time per token",
    "end_to_end": "end to end",
    "end_to_end_from_sending": "  from sending",
    "late": "sent late by",
}


def report_of(run: Run) -> RunReport:
    """What is told about one run."""
    told, samples = run.exchanges, Samples.of(run)
    done = [one for one in told if one.error is None]
    bounded = math.isfinite(run.load.rate)
    seconds = max((one.ended for one in told), default=run.start) - run.start
    prompt, generated = sum(one.prompt_tokens for one in done), sum(one.new_tokens for one in done)
    late, end_to_end = Spread.of(one.sent - one.due for one in told), Spread.of(samples.end_to_end_from_sending)
    return RunReport(
        asked_rate=run.load.rate if bounded else None,
        drawn_rate=_rate([one.due - run.start for one in told]) if bounded else None,
        sent_rate=_rate([one.sent - run.start for one in told]),
        completed_rate=_per(len(done), seconds),
        seconds=seconds,
        requests=len(told),
        completed=len(done),
        errors=dict(Counter(one.error for one in told if one.error is not None)),
        complaints={one.error: one.complaint for one in reversed(told) if one.error is not None},
        prompt_tokens=prompt,
        generated_tokens=generated,
        prompt_tokens_per_second=_per(prompt, seconds),
        generated_tokens_per_second=_per(generated, seconds),
        without_usage=sum(one.usage is None for one in done),
        most_at_once=run.most,
        waited_for_a_place=run.waited,
        fell_behind=bounded and _is_late(late, end_to_end),
        late=late,
        first_token=Spread.of(samples.first_token),
        first_token_from_sending=Spread.of(samples.first_token_from_sending),
        inter_token=Spread.of(samples.inter_token),
        time_per_token=Spread.of(samples.time_per_token),
        end_to_end=Spread.of(samples.end_to_end),
        end_to_end_from_sending=end_to_end,
    )


def _rate(times: list[float]) -> float | None:
    last = max(times, default=0.0)
    return len(times) / last if last > 0 else None


def _per(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


def _is_late(late: Spread | None, end_to_end: Spread | None) -> bool:
    """Whether one request in a hundred left later than a tenth of what the median answer takes, and than 10 ms."""
    typical = end_to_end.p50 if end_to_end else 0.0
    return late is not None and late.p99 > max(LATE_SECONDS, LATE_SHARE * typical)


def remarks(report: RunReport) -> list[str]:
    """What a reader of the numbers has to know."""
    found = []
    if report.fell_behind and report.late is not None:
        found.append(
            f"The client fell behind: one request in a hundred left {report.late.p99:.3f} s late or later. Latencies "
            "count from when requests were due; those from sending do not show the wait."
        )
    if report.waited_for_a_place:
        found.append(f"{report.waited_for_a_place} requests waited until fewer were running (--concurrency).")
    if report.without_usage:
        found.append(
            f"{report.without_usage} answers came without usage: chunks are counted as generated tokens, words as "
            "prompt tokens."
        )
    for kind, count in sorted(report.errors.items()):
        found.append(f"{count} failed, {kind.replace('_', ' ')}: {report.complaints[kind]}")
    return found
