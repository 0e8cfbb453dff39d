"""The load of `ostinato bench serve`: when requests are due, how long they are, and what they say.

All of it is drawn before the first request is sent, from the seed alone. Arrivals are a Poisson process: the gaps
between them are independent and exponential with mean 1 / rate. Arrivals, lengths and words have random numbers of
their own, so with the same seed the lengths are the same at every rate. The words are not: a server that keeps what it
has read would know them.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, takewhile

# One token each in most vocabularies, with the space before it.
WORDS = """
a about after again air all also always an and animal another answer any are around as ask at away back be because
been before began best better between big book both boy bring build but by call came can car carry change children
city close come could country cut day did different do does door down draw each early earth eat end enough even every
example eye face family far farm father feet few find fire first five follow food for form found four friend from gave
get girl give go good great group grow had half hand hard has have he head hear help her here high him his home horse
hot house how idea if important in into is it just keep kind king knew know land large last late learn leave left let
letter life light like line list little live long look made make man many map me mean men might mile more morning most
mother mountain move much music must my name near need never new next night no north not now number of off often old
on once one only open or other our out over own page paper part people place plant play point question quick rain read
real red right river road room round run said same saw say school sea second see seem sentence set she ship short
should show side simple sing sleep small so some song soon sound south space stand star start state stay step still
stop story study such sun sure table take talk tell ten than that the their them then there these they thing think
this three through time to together told too took town tree true turn two under until up us use very voice walk want
war was watch water way we week well went were west what wheel when where which while white who whole why will wind
with wood word work world would write year you young your
""".split()

_NUMBER = r"\d+(?:\.\d+)?"
_RANGE = re.compile(r"(\d+):(\d+)")
_LOGNORMAL = re.compile(rf"lognormal:({_NUMBER}),({_NUMBER})")


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of lengths in tokens: `128`, `32:512` (each as likely) or `lognormal:200,0.8`.

    The lognormal has the mean that is named; 0.8 is the standard deviation of the lengths' natural logarithm. Its
    lengths are rounded, to at least 1.
    """

    text: str
    low: int = 0
    high: int = 0
    mean: float = 0.0
    sigma: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Lengths:
        """Raises ValueError: none of the three forms, a length below 1, or a range that ends before it begins."""
        if match := _LOGNORMAL.fullmatch(text):
            mean, sigma = float(match[1]), float(match[2])
            if mean < 1:
                raise ValueError(f"a length is at least 1, got {text}")
            return cls(text, mean=mean, sigma=sigma)
        match = _RANGE.fullmatch(text)
        if match is None and not (text.isascii() and text.isdigit()):
            raise ValueError(f"{text!r} is no length: write for example 128, 32:512 or lognormal:200,0.8")
        low, high = (int(match[1]), int(match[2])) if match else (int(text), int(text))
        if not 1 <= low <= high:
            raise ValueError(f"a length is at least 1 and a range does not end before it begins, got {text}")
        return cls(text, low, high)

    def draw(self, random_numbers: random.Random) -> int:
        if not self.mean:
            return random_numbers.randint(self.low, self.high)
        log_mean = math.log(self.mean) - self.sigma**2 / 2  # so that the mean of the lengths is `mean`
        return max(1, round(random_numbers.lognormvariate(log_mean, self.sigma)))


@dataclass(frozen=True, slots=True)
class ServeLoad:
    """What is asked for. rate: requests/s, may be infinite; requests, seconds: the bounds, of which one is set; turn:
    of several loads with the same seed, which one this is: it has words of its own.

    Raises:
        ValueError: no bound, no bound but a time at an infinite rate, or a number that is not above 0.
    """

    rate: float
    prompt_tokens: Lengths
    new_tokens: Lengths
    requests: int | None = None
    seconds: float | None = None
    seed: int = 0
    turn: int = 0

    def __post_init__(self) -> None:
        if not all(given is None or given > 0 for given in (self.rate, self.requests, self.seconds)):
            raise ValueError(f"rate, requests and seconds are above 0, got {self}")
        if self.requests is None and (self.seconds is None or math.isinf(self.rate)):
            raise ValueError("without a number of requests there is no end")

    def arrivals(self) -> list[float]:
        """Seconds from the start, ascending; all 0 at an infinite rate. May be none in a short time."""
        times = islice(self._times(), self.requests)
        return list(times if self.seconds is None else takewhile(lambda time: time < float(self.seconds or 0), times))

    def _times(self) -> Iterator[float]:
        random_numbers, time = random.Random(f"arrivals {self.seed}"), 0.0
        while True:
            time += 0.0 if math.isinf(self.rate) else random_numbers.expovariate(self.rate)
            yield time

    def questions(self) -> Iterator[Question]:
        """Without end; the same for the same seed, turn and lengths."""
        lengths, words = random.Random(f"lengths {self.seed}"), random.Random(f"words {self.seed} {self.turn}")
        while True:
            prompt, new = self.prompt_tokens.draw(lengths), self.new_tokens.draw(lengths)
            yield Question(prompt, new, words.randrange(2**62))


@dataclass(frozen=True, slots=True)
class Question:
    """A request to be. prompt_tokens: wanted; new_tokens: allowed; seed: of its words."""

    prompt_tokens: int
    new_tokens: int
    seed: int

    def prompt(self, tokens: TokensPerWord) -> str:
        return some_words(tokens.words_for(self.prompt_tokens), self.seed)


@dataclass(frozen=True, slots=True)
class TokensPerWord:
    """How a server's tokens grow with the words: `fixed + each * words`, as two probes have shown."""

    each: float = 1.0
    fixed: float = 0.0

    @classmethod
    def between(cls, few: tuple[int, int], many: tuple[int, int]) -> TokensPerWord:
        """From (words, tokens) of two prompts. Words that take no tokens are not believed: then one takes one."""
        each = (many[1] - few[1]) / (many[0] - few[0])
        return cls(each, max(0.0, few[1] - each * few[0])) if each > 0 else cls()

    def words_for(self, tokens: int) -> int:
        """At least one."""
        return max(1, round((tokens - self.fixed) / self.each))


def some_words(count: int, seed: int) -> str:
    return " ".join(random.Random(f"words {seed}").choices(WORDS, k=count))
