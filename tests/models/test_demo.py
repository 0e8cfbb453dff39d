"""The embedded demo models: small, whole, and really trained."""

import random
import re

import pytest
from safetensors import safe_open

from ostinato.engine.llm import LLM
from ostinato.engine.sampling_params import SamplingParams
from ostinato.models import demo
from ostinato.models.errors import CheckpointError

SENTENCES = (
    "And it came to pass in those days, that the king sent his servants unto the city.",
    "Good my lord, I pray you pardon me; I will not speak of it again to any man.",
)

COMMON = "the and of to in a that he i is his unto for it not with thou you be my they shall this"


@pytest.mark.parametrize("name", demo.NAMES)
def test_it_is_small(name: str) -> None:
    folder = demo.path(name)
    with safe_open(folder / "model.safetensors", "pt") as weights:
        slices = [weights.get_slice(key) for key in weights.keys()]  # noqa: SIM118 - safe_open is no mapping
        assert {each.get_dtype() for each in slices} == {"BF16"}
    assert 5e6 < (folder / "model.safetensors").stat().st_size <= 12e6
    assert (folder / "README.md").stat().st_size > 1000


def word_logprob(llm: LLM, text: str) -> float:
    """Mean log-probability of a token of the text."""
    (scored,) = llm.generate([text], SamplingParams(max_tokens=0, prompt_logprobs=0))
    scores = [score.logprob for score in scored.prompt_logprobs if score is not None]
    return sum(scores) / len(scores)


@pytest.mark.parametrize("name", demo.NAMES)
def test_it_prefers_sentences_to_the_same_words_in_disorder(name: str) -> None:
    llm = LLM(str(demo.path(name)), max_batch=1)
    for sentence in SENTENCES:
        words = sentence.split()
        random.Random(0).shuffle(words)
        assert word_logprob(llm, sentence) > word_logprob(llm, " ".join(words)) + 0.5


@pytest.mark.parametrize("name", demo.NAMES)
def test_it_writes_words(name: str) -> None:
    """At least a fifth of the words are among the commonest of the books, as in any English text."""
    llm = LLM(str(demo.path(name)), max_batch=4)
    params = SamplingParams(max_tokens=120, temperature=0.7, seed=1, ignore_eos=True)
    text = " ".join(c.text for c in llm.generate(["And the king said unto him, ", "The night is "], params))
    words = re.findall(r"[a-z]+", text.lower())
    assert len(words) > 60
    assert sum(word in COMMON.split() for word in words) > 0.2 * len(words), text


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(CheckpointError, match="there are gla, mamba, rwkv7"):
        demo.path("gpt")
