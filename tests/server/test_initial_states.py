"""Tuned initial states, for every request and by name, against the golden continuations of a tuned model."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import load_file

from ostinato.engine.config import EngineConfig
from ostinato.engine.errors import RequestError
from ostinato.engine.llm import LLM
from ostinato.engine.loading import load_engine
from ostinato.engine.sampling_params import SamplingParams
from tests.server.harness import GLA, GOLDENS, error_of, real_service, serving

MODELS = {
    "rwkv6": GOLDENS / "rwkv6_pth" / "RWKV-x060-World-tiny-v2.1-ctx4096.pth",
    "rwkv7": GOLDENS / "rwkv7_pth" / "rwkv7-g1-tiny-ctx4096.pth",
}
GREEDY = {"temperature": 0, "ignore_eos": True, "return_token_ids": True}


def tuned(name: str) -> str:
    return str(GOLDENS / f"{name}_state" / "time_state.pth")


def golden(folder: str) -> tuple[list[int], list[int]]:
    """A prompt, and its greedy continuation."""
    values = load_file(GOLDENS / folder / "golden.safetensors")
    return values["short.input_ids"].tolist(), values["short.greedy_ids"].tolist()


async def complete(client: httpx.AsyncClient, **body: Any) -> Any:
    response = await client.post("/v1/completions", json={**GREEDY, **body})
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.asyncio
@pytest.mark.parametrize("name", MODELS)
async def test_a_request_may_ask_for_one_and_its_states_remember_it(name: str, tmp_path: Path) -> None:
    prompt, expected = golden(f"{name}_state")
    plain = golden(f"{name}_pth")[1]
    assert plain[: len(expected)] != expected, "the tuned state changes nothing"
    service = real_service(MODELS[name], dtype="float32", initial_states={"mine": tuned(name)}, prefix_cache=10**8)
    async with serving(service, state_store=(str(tmp_path),)) as client:
        told = {"prompt": prompt, "max_tokens": len(expected)}
        for _ in range(2):  # the second time from the prefix cache, which must not mix them up
            answer = await complete(client, initial_state="mine", **told)
            assert answer["choices"][0]["token_ids"] == expected
            assert (await complete(client, **told))["choices"][0]["token_ids"] == plain[: len(expected)]
        kept = await complete(client, initial_state="mine", store=True, prompt=prompt, max_tokens=3)
        rest = await complete(client, state=kept["state"]["id"], max_tokens=len(expected) - 3)
        assert kept["choices"][0]["token_ids"] + rest["choices"][0]["token_ids"] == expected
        path = f"/v1/states/{kept['state']['id']}/rewind"
        back = (await client.post(path, json={"tokens": len(prompt)})).json()
        again = await complete(client, state=back["id"], max_tokens=len(expected))
        assert again["choices"][0]["token_ids"] == expected
        assert (await client.get("/v1/models")).json()["data"][0]["initial_states"] == ["mine"]
        refused = await client.post("/v1/completions", json={"prompt": "x", "initial_state": "other"})
        assert error_of(refused)["param"] == "initial_state"
        both = {"prompt": "x", "initial_state": "mine", "state": back["id"]}
        assert error_of(await client.post("/v1/completions", json=both))["param"] == "initial_state"


def test_a_default_one_holds_for_every_request() -> None:
    prompt, expected = golden("rwkv7_state")
    llm = LLM(str(MODELS["rwkv7"]), dtype="float32", initial_states={"": tuned("rwkv7")})
    params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=len(expected))
    assert llm.generate([prompt], params)[0].token_ids == expected


def test_models_without_such_states_or_windows_say_so() -> None:
    with pytest.raises(Exception, match="takes no tuned initial state"):
        load_engine(EngineConfig(str(GLA), initial_states={"": tuned("rwkv7")}))
    with pytest.raises(RequestError, match="no layers of full attention"):
        load_engine(EngineConfig(str(GLA), attention_window=128))
