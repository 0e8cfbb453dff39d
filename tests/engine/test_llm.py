"""Offline generation, and loading: real (tiny) models end to end."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ostinato.engine import loading
from ostinato.engine.config import EngineConfig
from ostinato.engine.errors import CapacityError, RequestError, TextNeedsTokenizerError, UnsupportedModelError
from ostinato.engine.events import FinishReason
from ostinato.engine.llm import LLM
from ostinato.engine.sampling_params import SamplingParams

GOLDENS = Path(__file__).parents[1] / "goldens"


def small(name: str, **options: object) -> LLM:
    return LLM(str(GOLDENS / name), **{"dtype": "float32", "max_batch": 4, "max_step_tokens": 16} | options)


@pytest.mark.parametrize(
    "name",
    [
        "mamba_hf",
        "mamba_orig",
        "mamba2_hf",
        "mamba2_orig",
        "rwkv4_hf",
        "rwkv5_hf",
        "rwkv6_hf",
        "rwkv7_fla",
        "gla",
        "gla_swa",
    ],
)
def test_greedy_tokens_are_the_goldens_in_a_crowded_batch(name: str) -> None:
    """Six sequences on four slots with a budget of 16 tokens: prompts are chunked, decoding goes on beside them."""
    golden = load_file(GOLDENS / name / "golden.safetensors")
    prompts = [golden[f"{which}.input_ids"].tolist() for which in ("short", "long")] * 3
    expected = [golden[f"{which}.greedy_ids"].tolist() for which in ("short", "long")] * 3
    found = small(name).generate(prompts, SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True))
    assert [completion.token_ids for completion in found] == expected
    assert {completion.finish_reason for completion in found} == {FinishReason.LENGTH}


def test_text_is_what_the_tokenizer_says() -> None:
    llm = small("gla")
    (completion,) = llm.generate(["The river"], SamplingParams(max_tokens=12, seed=1, ignore_eos=True))
    assert completion.prompt_token_ids == tuple(llm.tokenizer.encode("The river"))
    assert completion.text == llm.tokenizer.decode(completion.token_ids, continues=True)


def test_each_prompt_can_have_its_own_parameters() -> None:
    llm = small("mamba_hf")
    params = [SamplingParams(max_tokens=3, ignore_eos=True), SamplingParams(max_tokens=0, prompt_logprobs=0)]
    first, second = llm.generate([[1, 2], [3, 4, 5]], params)
    assert len(first.token_ids) == 3
    assert second.token_ids == []
    assert [score and score.token_id for score in second.prompt_logprobs] == [None, 4, 5]
    with pytest.raises(ValueError, match="2 prompts"):
        llm.generate([[1], [2]], params[:1])


def test_prompt_scores_do_not_depend_on_how_the_prompt_is_chunked() -> None:
    prompt = list(range(1, 60))
    params = SamplingParams(max_tokens=0, prompt_logprobs=3)
    scores = [
        small("rwkv7_fla", max_step_tokens=budget).generate([prompt], params)[0].prompt_logprobs
        for budget in (5, 16, 64)
    ]
    assert scores[0] == scores[1] == scores[2]
    assert len(scores[0]) == 59


def test_a_stop_token_ends_the_text_and_is_not_part_of_it() -> None:
    llm = small("gla")
    free = llm.generate([[5, 6]], SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True))[0]
    stop = free.token_ids[4]
    params = SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True, stop_token_ids=frozenset({stop}))
    stopped = llm.generate([[5, 6]], params)[0]
    cut = free.token_ids.index(stop)
    assert stopped.token_ids == free.token_ids[: cut + 1]
    assert stopped.text == llm.tokenizer.decode(free.token_ids[:cut], continues=True)
    assert (stopped.finish_reason, stopped.stop_reason) == (FinishReason.STOP, stop)


def test_leaving_a_stream_early_frees_its_slot() -> None:
    llm = small("gla")
    stream = llm.stream([1, 2, 3], SamplingParams(max_tokens=1000, ignore_eos=True))
    next(stream)
    stream.close()
    (completion,) = llm.generate([[1]], SamplingParams(max_tokens=2, ignore_eos=True))
    assert len(completion.token_ids) == 2


def test_without_a_tokenizer_only_token_ids_are_taken() -> None:
    llm = small("mamba_orig")
    assert llm.tokenizer is None
    with pytest.raises(TextNeedsTokenizerError):
        llm.generate(["text"])
    assert small("mamba_orig", tokenizer=str(GOLDENS / "mamba_hf")).tokenizer is not None


def test_padding_rows_of_the_vocabulary_are_never_chosen() -> None:
    """157 tokens, 160 rows: a bias towards a padding row is refused, and no draw gives one."""
    llm = small("mamba_orig")
    assert llm.info.vocab_size == 157
    params = SamplingParams(temperature=100.0, max_tokens=300, seed=1)
    assert max(llm.generate([[1]], params)[0].token_ids) < 157
    with pytest.raises(RequestError, match="158 is not in the vocabulary"):
        llm.generate([[1]], SamplingParams(logit_bias={158: 5.0}))


def test_the_world_vocabulary_ends_with_0_even_without_a_tokenizer(tmp_path: Path) -> None:
    source = GOLDENS / "rwkv7_pth" / "rwkv7-g1-tiny-ctx4096.pth"
    alone = tmp_path / source.name
    alone.write_bytes(source.read_bytes())
    assert LLM(str(alone), max_batch=1).info.eos_token_ids == {0}


def test_capacity_is_computed_from_bytes() -> None:
    each = small("gla").info.bytes_per_state
    assert small("gla", max_batch=None, state_memory=3 * each + each // 2).info.slots == 3
    with pytest.raises(CapacityError, match="1 states of"):
        small("gla", max_batch=None, state_memory=each - 1)
    with pytest.raises(CapacityError, match="4 states of"):
        small("gla", state_memory=3 * each)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"device": "abacus"}, "cannot be used"),
        ({"device": "meta"}, "only cpu and cuda"),
        ({"max_batch": 0}, "max_batch must be at least 1"),
        ({"max_batch": 16, "max_step_tokens": 16}, "must be larger than max_batch"),
        ({"state_memory": 0}, "state_memory must be at least 1"),
        ({"threads": 0}, "threads must be at least 1"),
    ],
)
def test_options_that_cannot_be_are_refused_by_name(options: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        small("gla", **options)


def test_a_dtype_that_the_device_does_not_compute_in_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="choose one of"):
        small("gla", dtype="float16")


def test_the_checkpoints_dtype_is_the_default() -> None:
    bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert small("gla", dtype="auto").info.dtype == ("bfloat16" if bf16 else "float32")
    assert small("mamba_orig", dtype="auto").info.dtype == "float32"  # fp16 on disk
    assert EngineConfig(model="x").dtype == "auto"


def test_an_open_stream_is_not_disturbed() -> None:
    llm = small("gla")
    params = SamplingParams(max_tokens=5, temperature=0.0, ignore_eos=True)
    expected = llm.generate([[1, 2]], params)[0].token_ids
    stream = llm.stream([1, 2], params)
    found = list(next(stream).token_ids)
    with pytest.raises(RuntimeError, match="still open"):
        llm.generate([[3]], params)
    found += [token for event in stream for token in event.token_ids]
    assert found == expected


def test_one_text_instead_of_a_list_is_refused() -> None:
    with pytest.raises(TypeError, match="must be a list"):
        small("gla").generate("The river")


def test_weights_that_do_not_fit_are_refused_before_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_free_memory", lambda device: 1000)
    with pytest.raises(CapacityError, match="the weights need"):
        small("gla")


def test_a_containers_limit_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loading, "CGROUP", tmp_path)
    assert loading._free_in_container() == sys.maxsize
    (tmp_path / "memory.current").write_text("600\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert loading._free_in_container() == sys.maxsize
    (tmp_path / "memory.max").write_text("1000\n")
    assert loading._free_in_container() == 400
    assert loading._free_memory(torch.device("cpu")) == 400
