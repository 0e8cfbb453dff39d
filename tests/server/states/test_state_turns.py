"""Conversations by state: every turn reads what is new, and nothing twice."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from safetensors.torch import load

from ostinato.engine.service import Service
from ostinato.server.conversation import Conversation
from ostinato.server.protocol import ChatMessage
from tests.server.harness import error_of, events, real_service, serving

pytestmark = pytest.mark.asyncio
DEMO = Path(__file__).parents[3] / "models" / "demo" / "rwkv7"
CHAT = "/v1/chat/completions"


@pytest.fixture
def service() -> Service:
    return real_service(DEMO, prefix_cache=10**9)


@pytest_asyncio.fixture
async def client(place: str, service: Service) -> AsyncIterator[httpx.AsyncClient]:
    """On every kind of store."""
    async with serving(service, state_store=(place,)) as client:
        yield client


async def post(client: httpx.AsyncClient, path: str, **body: Any) -> Any:
    response = await client.post(path, json=body)
    assert response.status_code in (200, 201), response.text
    return response.json()


async def log_of(client: httpx.AsyncClient, state: str) -> list[int]:
    """The tokens that a state has read."""
    content = (await client.get(f"/v1/states/{state}/content")).content
    tokens: list[int] = load(content)["tokens"].tolist()
    return tokens


async def test_fifty_turns_read_only_what_is_new(client: httpx.AsyncClient, service: Service) -> None:
    state: dict[str, Any] = {"id": None, "tokens": 0}
    replies = []
    for turn in range(50):
        messages = [{"role": "user", "content": f"And what happened on day {turn}?"}]
        if turn == 0:
            messages = [{"role": "system", "content": "You tell a story."}, *messages]
        before = service.stats().read_tokens_total
        answer = await post(
            client, CHAT, messages=messages, state=state["id"], store=True, max_tokens=10, temperature=0.8, seed=turn
        )
        read = service.stats().read_tokens_total - before
        new = answer["state"]["tokens"] - state["tokens"]
        assert new <= read <= new + 1, f"turn {turn}"
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == state["tokens"]
        state = answer["state"]
        replies.append(answer["choices"][0]["message"]["content"] + state.get("pending", ""))
    log = await log_of(client, state["id"])
    text = service.tokenizer.decode(log, skip_special_tokens=False) if service.tokenizer else ""
    assert text.startswith("System: You tell a story.\n\nUser: And what happened on day 0?\n\nAssistant:")
    for turn, reply in enumerate(replies[:-1]):
        assert f"{reply}\n\nUser: And what happened on day {turn + 1}?\n\nAssistant:" in text, f"turn {turn}"
    told = {"max_tokens": 8, "temperature": 0.9, "seed": 1, "return_token_ids": True}
    by_state = await post(client, "/v1/completions", state=state["id"], prompt=log[:1], **told)
    anew = await post(client, "/v1/completions", prompt=[*log, log[0]], cache_prompt=False, **told)
    assert anew["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert by_state["choices"][0]["token_ids"] == anew["choices"][0]["token_ids"]


async def test_a_conversation_sent_whole_is_found_in_the_prefix_cache(
    client: httpx.AsyncClient, service: Service
) -> None:
    """No states are named: the client sends everything, as clients of the OpenAI API do."""
    messages = [{"role": "user", "content": "Tell me about the sea, at length, and do not stop."}]
    for turn in range(4):
        answer = await post(client, CHAT, messages=messages, max_tokens=12, temperature=0)
        usage = answer["usage"]
        missing = usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
        assert turn == 0 or missing < 20, "the turns before were read again"
        messages += [
            {"role": "assistant", "content": answer["choices"][0]["message"]["content"]},
            {"role": "user", "content": "Go on."},
        ]
    assert service.stats().reuse["hit"] == 3
    uncached = await post(client, CHAT, messages=messages[:-2], max_tokens=12, temperature=0, cache_prompt=False)
    assert uncached["usage"]["prompt_tokens_details"] == {"cached_tokens": 0, "cache_reason": "off"}
    assert uncached["choices"][0]["message"] == answer["choices"][0]["message"]


async def test_an_answer_cut_by_its_length_can_go_on(client: httpx.AsyncClient) -> None:
    told = {"messages": [{"role": "user", "content": "Who are you?"}], "temperature": 0, "stop": ["never"]}
    whole = await post(client, CHAT, max_tokens=20, **told)
    part = await post(client, CHAT, max_tokens=9, store=True, **told)
    rest = await post(client, CHAT, **{**told, "messages": []}, state=part["state"]["id"], max_tokens=11)
    joined = part["choices"][0]["message"]["content"] + rest["choices"][0]["message"]["content"]
    assert joined == whole["choices"][0]["message"]["content"]


async def test_a_context_that_was_read_beforehand(client: httpx.AsyncClient) -> None:
    context = [{"role": "system", "content": "The password is 'sesame'."}]
    question = [{"role": "user", "content": "What is the password?"}]
    made = await post(client, "/v1/states", messages=context)
    told = {"max_tokens": 10, "temperature": 0}
    answer = await post(client, CHAT, state=made["id"], messages=question, **told)
    whole = await post(client, CHAT, messages=[*context, *question], **told)
    assert answer["choices"] == whole["choices"]
    assert answer["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]


async def test_an_answer_that_was_cut_by_going_back_can_be_continued(client: httpx.AsyncClient) -> None:
    told = {"messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "ignore_eos": True}
    whole = await post(client, CHAT, **told, max_tokens=12, store=True)
    back = await post(client, f"/v1/states/{whole['state']['id']}/rewind", back=5)
    rest = await post(client, CHAT, **{**told, "messages": []}, state=back["id"], max_tokens=5)
    text = whole["choices"][0]["message"]["content"]
    assert text.endswith(rest["choices"][0]["message"]["content"])
    assert rest["usage"]["completion_tokens"] == 5


async def test_marked_messages_are_checkpoints(client: httpx.AsyncClient, service: Service) -> None:
    messages = [
        {"role": "system", "content": "Be brief.", "checkpoint": "rules"},
        {"role": "user", "content": "Hello there."},
        {"role": "assistant", "content": "Good day.", "checkpoint": True},
        {"role": "user", "content": "Who are you?"},
    ]
    answer = await post(client, CHAT, messages=messages, store=True, max_tokens=4, temperature=0)
    rules, turn = answer["checkpoints"]
    assert (rules.get("mark"), turn.get("mark")) == ("rules", None)
    assert service.tokenizer is not None
    read = service.tokenizer.decode(await log_of(client, rules["id"]))
    assert "System: Be brief.\n\n".startswith(read)
    assert len(read) >= len("System: Be brief.")
    read = service.tokenizer.decode(await log_of(client, turn["id"]))
    assert "Assistant: Good day." in read
    assert "Who" not in read
    back = await post(client, f"/v1/states/{answer['state']['id']}/rewind", mark="rules")
    assert back["id"] == rules["id"]


async def test_a_streamed_turn_names_its_state_at_the_end(client: httpx.AsyncClient) -> None:
    told = {"messages": [{"role": "user", "content": "Hi"}], "store": True, "max_tokens": 5, "temperature": 0}
    streamed = await events(client, CHAT, stream_options={"include_usage": True}, **told)
    whole = await post(client, CHAT, **told)
    assert streamed[-1] == "[DONE]"
    assert streamed[-2]["state"] == streamed[-3]["state"] == whole["state"]
    assert streamed[-2]["usage"]["total_tokens"] == whole["usage"]["total_tokens"]


class Template:
    """A tokenizer with a chat template that nobody can go on behind: it writes the newest message first."""

    def apply_chat_template(self, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        return "".join(f"<{message['content']}>" for message in reversed(messages))


async def test_a_template_that_cannot_be_continued_is_an_error(client: httpx.AsyncClient) -> None:
    message = ChatMessage(role="user", content="new")
    for after in (True, False):
        conversation = Conversation(Template(), [message], after)  # type: ignore[arg-type]  # one method is used
        with pytest.raises(Exception, match="cannot be continued behind a state"):
            conversation.text()
    response = await client.post(CHAT, json={"messages": []})
    assert error_of(response)["param"] == "messages"
