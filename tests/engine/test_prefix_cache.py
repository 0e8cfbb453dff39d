"""The prefix cache against a list of everything that was put into it, and its budget, fact by fact."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ostinato.engine.prefix_cache import MIN_BRANCH, PrefixCache
from ostinato.engine.state_pool import State

FLOATS = 100
TOKEN = 8  # bytes that a token of the log costs


def state(num_read: int, *, logits: bool = True) -> State:
    return State({"s": torch.zeros(FLOATS)}, num_read, torch.zeros(1) if logits else None)


def cost(length: int, *, logits: bool = True) -> int:
    return 4 * FLOATS + 4 * logits + TOKEN * length


LOGS = st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple)


@settings(max_examples=300, deadline=None, print_blob=True)
@given(st.lists(st.tuples(LOGS, st.sampled_from(["a", "b"]), st.booleans()), max_size=25), LOGS)
def test_the_longest_state_that_helps_is_found(
    entries: list[tuple[tuple[int, ...], str, bool]], wanted: tuple[int, ...]
) -> None:
    cache, kept = PrefixCache(10**9), dict[tuple[int, ...], State]()
    for log, scope, logits in entries:
        made = state(len(log), logits=logits)
        cache.insert(scope, log, made)
        if scope == "a" and (log not in kept or (kept[log].logits is None and logits)):
            kept[log] = made
    useful = [
        log for log in kept if wanted[: len(log)] == log and (len(log) < len(wanted) or kept[log].logits is not None)
    ]
    expected = kept[max(useful, key=len)] if useful else None
    assert cache.find("a", wanted).state is expected
    assert cache.num_states == len({(log, scope) for log, scope, _ in entries})


@settings(max_examples=300, deadline=None, print_blob=True)
@given(st.lists(st.tuples(LOGS, st.booleans()), max_size=40), st.integers(0, 2000))
def test_the_budget_holds_after_every_insertion(entries: list[tuple[tuple[int, ...], bool]], budget: int) -> None:
    cache = PrefixCache(budget)
    for log, logits in entries:
        cache.insert("a", log, state(len(log), logits=logits))
        assert cache.num_bytes <= budget
        fits = cost(len(log), logits=logits) <= budget
        assert not fits or cache.num_states, "the newest fits, and nothing was kept"
    everything = [log for log, _ in entries]
    left = {log: cache.find("a", (*log, 9)).state for log in everything}
    exact = {log for log, found in left.items() if found is not None and found.num_read == len(log)}
    sizes = [found.num_bytes + TOKEN * len(log) for log, found in left.items() if found is not None and log in exact]
    assert cache.num_states == len(exact)
    assert cache.num_bytes == sum(sizes)


def test_what_saves_least_goes_first() -> None:
    """Behind a state at 100 tokens, one at 101 saves one token only."""
    log = tuple(range(200))
    cache = PrefixCache(cost(100) + cost(101) + cost(60) - 1)
    cache.insert("a", log[:100], state(100))
    cache.insert("a", log[:101], state(101))
    cache.insert("a", tuple(range(500, 560)), state(60))
    assert cache.evictions == 1
    assert cache.find("a", log).state is not None
    assert cache.find("a", (*log[:101], 7)).state is cache.find("a", (*log[:100], 7)).state, "the wrong one went"


def test_what_was_used_lately_stays_longer_than_its_equals() -> None:
    logs = [tuple(range(100 * i, 100 * i + 50)) for i in range(1, 6)]
    cache = PrefixCache(2 * cost(50))
    for log in logs[:2]:
        cache.insert("a", log, state(50))
    cache.insert("a", logs[2], state(50))  # ages the rest: one of the first two is gone
    survivor = next(log for log in logs[:2] if cache.find("a", (*log, 0)).state is not None)
    for log in logs[3:]:
        assert cache.find("a", (*survivor, 0)).state is not None
        cache.insert("a", log, state(50))
    assert cache.find("a", (*survivor, 0)).state is not None


def test_a_parting_is_named_where_a_state_there_would_save_enough() -> None:
    cache, log = PrefixCache(10**9), tuple(range(100))
    cache.insert("a", log, state(100))
    assert cache.find("a", (*log[:40], 999)).branch == 40
    assert cache.find("a", (*log[: MIN_BRANCH - 1], 999)).branch is None
    assert cache.find("a", log[:40]).branch is None, "the end of a prompt is no parting: it is kept anyway"
    cache.insert("a", log[:40], state(40))
    assert cache.find("a", (*log[:50], 999)).branch is None, "it saves less than reading it costs"
    assert cache.find("a", (*log[:60], 999)).branch == 60


def test_nothing_is_kept_without_a_budget_or_beyond_it() -> None:
    for budget in (0, cost(3) - 1):
        cache = PrefixCache(budget)
        cache.insert("a", (1, 2, 3), state(3))
        assert (cache.num_states, cache.num_bytes) == (0, 0)
        assert cache.find("a", (1, 2, 3, 4)).state is None
