"""The async face: requests from an event loop, the engine in its thread."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ostinato.engine.errors import EngineStoppedError, QueueFullError, RequestError, TextNeedsTokenizerError
from ostinato.engine.event_stream import EventStream
from ostinato.engine.events import FinishReason, TokenEvent
from ostinato.engine.sampling_params import SamplingParams
from ostinato.engine.service import Service
from ostinato.engine.text.world_tokenizer import WorldTokenizer
from ostinato.engine.types import StepPlan
from tests.fakes import Gate, ScriptedRunner, next_token, scripted_service

GOLDENS = Path(__file__).parents[1] / "goldens"
GREEDY = SamplingParams(temperature=0.0, max_tokens=5)
ENDLESS = SamplingParams(temperature=0.0, max_tokens=10**6)


@asynccontextmanager
async def running(runner: ScriptedRunner | None = None, **options: int) -> AsyncIterator[Service]:
    service = scripted_service(runner, **options)
    service.start()
    await eventually(lambda: service.ready)
    try:
        yield service
    finally:
        await service.stop()
        assert not service.healthy


async def eventually(condition: Callable[[], bool]) -> None:
    """Waits for what another thread does; the generous bound only matters when it never does."""
    for _ in range(3000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never happened")


async def collect(stream: EventStream) -> list[TokenEvent]:
    return [event async for event in stream]


def tokens(events: list[TokenEvent], index: int = 0) -> list[int]:
    return [token for event in events if event.index == index for token in event.token_ids]


def continuation(prompt: list[int], count: int) -> list[int]:
    history = list(prompt)
    for _ in range(count):
        history.append(next_token(history))
    return history[len(prompt) :]


def test(case: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Runs an async test; a function of its own, so that pytest collects a plain one."""

    def run() -> None:
        asyncio.run(asyncio.wait_for(case(), timeout=60))

    run.__name__, run.__doc__ = case.__name__, case.__doc__
    return run


test.__test__ = False  # type: ignore[attr-defined]  # the decorator itself is no test


@test
async def test_a_request_streams_its_tokens_and_ends_with_one_final_event() -> None:
    async with running() as service:
        events = await collect(service.submit("r", [(1, 2, 3)], GREEDY))
    assert tokens(events) == continuation([1, 2, 3], 5)
    assert [event.finish_reason for event in events] == [None] * 4 + [FinishReason.LENGTH]


@test
async def test_choices_of_several_prompts_are_numbered_prompt_by_prompt() -> None:
    async with running() as service:
        events = await collect(service.submit("r", [(1,), (2, 3)], GREEDY, n=2))
    assert [tokens(events, i) for i in range(4)] == [continuation(p, 5) for p in ([1], [1], [2, 3], [2, 3])]


@test
async def test_choices_of_one_seed_differ_and_repeat() -> None:
    params = SamplingParams(temperature=5.0, max_tokens=12, seed=3)
    async with running() as service:
        first = await collect(service.submit("a", [(1,)], params, n=3))
        second = await collect(service.submit("b", [(1,)], params, n=3))
    choices = [tokens(first, i) for i in range(3)]
    assert len({tuple(choice) for choice in choices}) == 3
    assert choices == [tokens(second, i) for i in range(3)]


@test
async def test_closing_a_stream_frees_its_slots() -> None:
    runner = ScriptedRunner()
    async with running(runner) as service:
        stream = service.submit("r", [(1,)], ENDLESS, n=2)
        await anext(stream)
        await stream.aclose()
        await eventually(lambda: service.stats().slots_used == 0)
        assert not runner.states
        rest = await collect(stream)
        await stream.aclose()
    assert [event.finish_reason for event in rest if event.finish_reason] == [FinishReason.ABORTED] * 2


@test
async def test_an_abort_takes_effect_before_the_next_step() -> None:
    """The step in progress is held at a gate; the stream is closed; after the gate opens no step sees it."""
    gate, seen = Gate(), []

    def before_step(plan: StepPlan) -> None:
        seen.append([chunk.sequence.id for chunk in plan.chunks])
        gate(plan)

    async with running(ScriptedRunner(before_step=before_step)) as service:
        stream = service.submit("r", [(1,)], ENDLESS)
        await eventually(lambda: ["r-0"] in seen)
        await stream.aclose()
        gate.open()
        await eventually(lambda: service.stats().slots_used == 0)
    assert seen.count(["r-0"]) == 1


@test
async def test_a_full_queue_refuses_all_of_a_request_and_says_when_to_come_back() -> None:
    gate = Gate()
    async with running(ScriptedRunner(before_step=gate), slots=2, max_queue=1) as service:
        first = service.submit("a", [(1,)], GREEDY, n=2)
        with pytest.raises(QueueFullError, match="queue is full") as caught:
            service.submit("b", [(1,)], GREEDY, n=2)
        assert caught.value.retry_after >= 1
        second = service.submit("c", [(2,)], GREEDY)
        gate.open()
        assert tokens(await collect(first), 1) == continuation([1], 5)
        assert tokens(await collect(second)) == continuation([2], 5)
        assert (await collect(service.submit("d", [(1,)], GREEDY, n=3)))[-1].finish_reason


@test
async def test_bad_requests_are_refused_at_once_with_the_field() -> None:
    async with running() as service:
        for prompts, params, n, field in (
            ([], GREEDY, 1, "prompt"),
            ([()], GREEDY, 1, "prompt"),
            ([(1, 256)], GREEDY, 1, "prompt"),
            ([(-1,)], GREEDY, 1, "prompt"),
            ([(1,)], GREEDY, 0, "n"),
            ([(1,)], GREEDY, 1000, "n"),
            ([(1,)], SamplingParams(logit_bias={999: 1.0}), 1, "logit_bias"),
            ([(1,)], SamplingParams(stop_token_ids=frozenset({999})), 1, "stop_token_ids"),
        ):
            with pytest.raises(RequestError) as caught:
                service.submit("r", prompts, params, n=n)
            assert caught.value.field == field
        with pytest.raises(TextNeedsTokenizerError):
            service.submit("r", [(1,)], SamplingParams(stop=("x",)))
        assert service.stats().waiting == service.stats().running == 0


@test
async def test_a_step_that_raises_fails_its_sequences_and_the_service_goes_on() -> None:
    def break_at_13(plan: StepPlan) -> None:
        if any(13 in chunk.sequence.prompt for chunk in plan.chunks):
            raise RuntimeError("unlucky")

    async with running(ScriptedRunner(before_step=break_at_13)) as service:
        (event,) = await collect(service.submit("bad", [(13,)], GREEDY))
        assert (event.finish_reason, event.error) == (FinishReason.ERROR, "unlucky")
        assert tokens(await collect(service.submit("good", [(1,)], GREEDY))) == continuation([1], 5)
        assert service.stats().finished == {FinishReason.ERROR: 1, FinishReason.LENGTH: 1}


@test
async def test_draining_waits_for_what_runs_and_takes_nothing_new() -> None:
    gate = Gate()
    async with running(ScriptedRunner(before_step=gate)) as service:
        stream = service.submit("r", [(1,)], GREEDY)
        drained = asyncio.create_task(service.drain(30))
        await asyncio.sleep(0)
        assert not service.ready
        with pytest.raises(EngineStoppedError):
            service.submit("late", [(1,)], GREEDY)
        gate.open()
        assert await drained
        assert (await collect(stream))[-1].finish_reason == FinishReason.LENGTH


@test
async def test_draining_aborts_what_is_not_done_in_time() -> None:
    async with running() as service:
        stream = service.submit("r", [(1,)], ENDLESS)
        assert not await service.drain(0.05)
        assert (await collect(stream))[-1].finish_reason == FinishReason.ABORTED


@test
async def test_a_dead_engine_ends_every_stream_and_refuses_requests() -> None:
    gate = Gate()

    def die(plan: StepPlan) -> None:
        gate(plan)
        if not plan.chunks[0].sequence.id.startswith("warm-up"):
            raise KeyboardInterrupt

    service = scripted_service(ScriptedRunner(before_step=die))
    service.start()
    await eventually(lambda: service.ready)
    stream = service.submit("r", [(1,)], GREEDY)
    await eventually(lambda: service.stats().running == 1)
    late = service.submit("late", [(1,)], GREEDY)  # the engine never takes it out of its queue of commands
    gate.open()
    for each in (stream, late):
        (event,) = await collect(each)
        assert event.finish_reason == FinishReason.ERROR
    await eventually(lambda: not service.healthy)
    with pytest.raises(EngineStoppedError):
        service.submit("r", [(1,)], GREEDY)
    await service.stop()


@test
async def test_a_model_whose_first_step_fails_is_never_ready() -> None:
    def fail(plan: StepPlan) -> None:
        raise RuntimeError("no such instruction")

    service = scripted_service(ScriptedRunner(before_step=fail))
    service.start()
    await eventually(lambda: not service.healthy)
    assert not service.ready
    await service.stop()


@test
async def test_text_that_cannot_be_made_fails_its_own_sequence_only() -> None:
    class Broken(WorldTokenizer):
        def piece(self, token_id: int, *, first: bool = False) -> bytes:
            if token_id == poison:
                raise RuntimeError("no such piece")
            return super().piece(token_id, first=first)

    tokenizer = Broken(GOLDENS / "rwkv7_pth" / "rwkv_vocab_v20230424.txt")
    poison = continuation([1], 3)[-1]
    service = scripted_service(tokenizer=tokenizer)
    service.start()
    await eventually(lambda: service.ready)
    bad, good = service.submit("bad", [(1,)], GREEDY), service.submit("good", [(2,)], GREEDY)
    assert (await collect(bad))[-1].error == "no such piece"
    assert (await collect(good))[-1].finish_reason == FinishReason.LENGTH
    assert service.healthy
    await service.stop()


@test
async def test_sampling_that_fails_ends_its_own_sequence_only() -> None:
    everything = frozenset(range(256))
    impossible = SamplingParams(temperature=0.0, max_tokens=5, min_tokens=3, stop_token_ids=everything)
    async with running() as service:
        bad, good = service.submit("bad", [(1,)], impossible), service.submit("good", [(2,)], GREEDY)
        assert "no token may be chosen" in str((await collect(bad))[-1].error)
        assert tokens(await collect(good)) == continuation([2], 5)


@test
async def test_admission_never_accepts_more_than_there_is_room_for() -> None:
    """Slots and queue are counted where requests arrive, so what the engine does meanwhile cannot matter."""
    gate = Gate()
    async with running(ScriptedRunner(before_step=gate), slots=2, max_queue=3) as service:
        streams = []
        for i in range(5):
            streams.append(service.submit(f"r{i}", [(1 + i,)], GREEDY))
            await asyncio.sleep(0.01)
        for i in range(3):
            with pytest.raises(QueueFullError):
                service.submit(f"late{i}", [(1,)], GREEDY)
            await asyncio.sleep(0.01)
        gate.open()
        for i, stream in enumerate(streams):
            assert tokens(await collect(stream)) == continuation([1 + i], 5)
        assert service.healthy


def test_a_loop_that_closes_leaves_nothing_running() -> None:
    service = scripted_service()
    service.start()

    async def start_and_leave() -> None:
        await eventually(lambda: service.ready)
        await anext(service.submit("r", [(1,)], ENDLESS))

    async def check_and_stop() -> None:
        await eventually(lambda: service.stats().slots_used == 0)
        assert service.healthy
        await service.stop()

    asyncio.run(start_and_leave())
    asyncio.run(check_and_stop())


@test
async def test_an_id_in_use_is_refused_and_the_first_request_goes_on() -> None:
    async with running() as service:
        stream = service.submit("same", [(1,)], GREEDY)
        with pytest.raises(ValueError, match="still in progress"):
            service.submit("same", [(2,)], GREEDY)
        assert tokens(await collect(stream)) == continuation([1], 5)
        assert tokens(await collect(service.submit("same", [(2,)], GREEDY))) == continuation([2], 5)
