"""The scheduler's policy, fact by fact."""

import pytest

from ostinato.engine.errors import QueueFullError
from ostinato.engine.sampling_params import SamplingParams
from ostinato.engine.scheduler import Scheduler
from ostinato.engine.types import Sequence, StepPlan


def sequence(name: str, length: int = 1, *, priority: int = 0, max_tokens: int = 4) -> Sequence:
    return Sequence(name, tuple(range(length)), SamplingParams(max_tokens=max_tokens), seed=0, priority=priority)


def advance(plan: StepPlan) -> None:
    """What the engine does after a step, with a token for every chunk that samples."""
    for chunk in plan.chunks:
        chunk.sequence.num_read += chunk.length
        if chunk.samples:
            chunk.sequence.append(1)


def schedule(scheduler: Scheduler) -> StepPlan:
    """Admits and plans, as the engine does."""
    scheduler.admit()
    return scheduler.plan()


def read(plan: StepPlan) -> list[tuple[str, int]]:
    return [(chunk.sequence.id, chunk.length) for chunk in plan.chunks]


def test_sequences_are_admitted_in_order_of_arrival_while_slots_are_free() -> None:
    scheduler = Scheduler(2, 8, 8)
    scheduler.add([sequence("a"), sequence("b"), sequence("c")])
    assert read(schedule(scheduler)) == [("a", 1), ("b", 1)]
    assert (scheduler.num_running, scheduler.num_waiting, scheduler.num_free) == (2, 1, 0)


def test_a_lower_priority_number_is_served_first_and_equals_in_order_of_arrival() -> None:
    scheduler = Scheduler(1, 8, 8)
    waiting = [sequence("late", priority=5), sequence("b"), sequence("urgent", priority=-1), sequence("c")]
    scheduler.add(waiting)
    order = []
    while scheduler.has_work:
        (chunk,) = schedule(scheduler).chunks
        order.append(chunk.sequence.id)
        scheduler.remove(chunk.sequence)
    assert order == ["urgent", "b", "c", "late"]


def test_decoding_goes_first_and_a_long_prompt_takes_what_is_left_of_the_budget() -> None:
    scheduler = Scheduler(3, 8, 8)
    scheduler.add([sequence("a"), sequence("b")])
    advance(schedule(scheduler))
    scheduler.add([sequence("long", 20)])
    plans = []
    for _ in range(4):
        plan = schedule(scheduler)
        plans.append(read(plan))
        advance(plan)
    assert plans[:3] == [[("a", 1), ("b", 1), ("long", 6)]] * 3
    assert plans[3] == [("a", 1), ("b", 1), ("long", 2)]


def test_prompts_share_the_budget_in_order_of_admission() -> None:
    scheduler = Scheduler(3, 10, 8)
    scheduler.add([sequence("a", 4), sequence("b", 12), sequence("c", 3)])
    plan = schedule(scheduler)
    assert read(plan) == [("a", 4), ("b", 6)]
    assert [chunk.samples for chunk in plan.chunks] == [True, False]


def test_only_the_chunk_that_ends_the_prompt_samples_and_none_when_no_token_is_wanted() -> None:
    scheduler = Scheduler(1, 4, 8)
    scheduler.add([sequence("a", 6, max_tokens=0)])
    first = schedule(scheduler)
    advance(first)
    assert not any(chunk.samples for chunk in (*first.chunks, *schedule(scheduler).chunks))


def test_room_counts_the_queue_and_the_free_slots_and_adding_is_all_or_nothing() -> None:
    scheduler = Scheduler(2, 8, 1)
    assert scheduler.room() == 3
    with pytest.raises(QueueFullError, match="queue is full"):
        scheduler.add([sequence(name) for name in "abcd"])
    assert scheduler.num_waiting == 0
    scheduler.add([sequence(name) for name in "abc"])
    assert scheduler.room() == 0


def test_removing_frees_the_slot_of_a_running_sequence_and_forgets_a_waiting_one() -> None:
    scheduler = Scheduler(1, 8, 8)
    running, waiting = sequence("a"), sequence("b")
    scheduler.add([running, waiting])
    schedule(scheduler)
    assert scheduler.remove(waiting) == -1
    assert scheduler.remove(running) == 0
    assert not scheduler.has_work
    assert scheduler.num_free == 1


def test_a_budget_that_could_starve_prompts_is_refused() -> None:
    with pytest.raises(ValueError, match="starves prompts"):
        Scheduler(8, 8, 0)


def test_ids_in_use_are_refused_and_may_be_used_again_later() -> None:
    scheduler = Scheduler(2, 8, 8)
    first = sequence("a")
    scheduler.add([first])
    for again in ([sequence("a")], [sequence("b"), sequence("b")]):
        with pytest.raises(ValueError, match="must be unique"):
            scheduler.add(again)
    scheduler.remove(first)
    scheduler.add([sequence("a")])
    assert scheduler.num_waiting == 1
