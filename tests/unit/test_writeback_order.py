"""The upload queue's decisions: turns, pauses, failures, breakers."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores.cache.schema import UploadState
from stores.cache.settings import WritebackSettings
from stores.cache.writeback.errors import StagedCopyDamaged, told
from stores.cache.writeback.order import (
    Breaker,
    BreakerState,
    Candidate,
    choose,
    interleaved,
    judge,
    pause_s,
)
from stores.errors import (
    AccessDenied,
    AlreadyExists,
    DeviceFault,
    IntegrityError,
    NoSpace,
    NotFound,
    StorageError,
    StoreError,
    TlsFailed,
    TooLarge,
    Unavailable,
)

LARGE = 100
SETTINGS = WritebackSettings(first_retry_s=1, last_retry_s=60, breaker_failures=3, first_probe_s=5, last_probe_s=40)

sizes = st.sampled_from([0, 1, LARGE - 1, LARGE, 50 * LARGE])
stores = st.sampled_from(["a", "b", "c"])


@st.composite
def queues(draw: st.DrawFn, least: int = 0) -> list[Candidate]:
    found = draw(st.lists(st.tuples(stores, sizes), min_size=least, max_size=20))
    return [Candidate(str(number), store, size) for number, (store, size) in enumerate(found)]


def unbounded(store: str) -> int:
    return 1 << 30


def is_large(candidate: Candidate) -> bool:
    return candidate.size >= LARGE


# ------------------------------------------------------------------------------------------------------------- turns


@given(queues(), queues(), st.integers(1, 6))
def test_bounds_hold(waiting: list[Candidate], running: list[Candidate], slots: int) -> None:
    chosen = choose(waiting, running, slots=slots, large=LARGE, most=unbounded)
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= set(waiting)
    if chosen:
        assert len(running) + len(chosen) <= slots
    if any(map(is_large, chosen)):
        assert sum(map(is_large, [*running, *chosen])) <= max(1, slots - 1)


@given(queues(), queues(), st.integers(1, 6))
def test_no_turn_is_left_free_that_somebody_may_have(
    waiting: list[Candidate], running: list[Candidate], slots: int
) -> None:
    chosen = choose(waiting, running, slots=slots, large=LARGE, most=unbounded)
    left = [each for each in waiting if each not in chosen]
    if len(running) + len(chosen) < slots:
        large_ones = sum(map(is_large, [*running, *chosen]))
        assert all(map(is_large, left))
        assert not left or large_ones >= max(1, slots - 1)


@given(queues(), queues(), st.integers(1, 6))
def test_in_one_store_and_lane_the_oldest_come_first(
    waiting: list[Candidate], running: list[Candidate], slots: int
) -> None:
    chosen = choose(waiting, running, slots=slots, large=LARGE, most=unbounded)
    for store in "abc":
        for large in (False, True):
            lane = [each for each in waiting if each.store == store and is_large(each) is large]
            assert [each for each in lane if each in chosen] == lane[: sum(each in chosen for each in lane)]


@given(queues(), queues(), st.integers(1, 6), st.dictionaries(stores, st.integers(0, 2)))
def test_a_store_gets_no_more_than_it_may_have(
    waiting: list[Candidate], running: list[Candidate], slots: int, most: dict[str, int]
) -> None:
    chosen = choose(waiting, running, slots=slots, large=LARGE, most=lambda store: most.get(store, 9))
    before, after = Counter(each.store for each in running), Counter(each.store for each in [*running, *chosen])
    assert all(after[store] <= max(before[store], most.get(store, 9)) for store in "abc")


@given(st.data(), st.integers(2, 5))
def test_small_ones_come_soon_however_many_large_ones_wait(data: st.DataObject, slots: int) -> None:
    """And large ones come, however many small ones keep coming: nobody starves."""
    waiting = [Candidate(f"large {number}", "a", 50 * LARGE) for number in range(data.draw(st.integers(1, 20)))]
    running: list[Candidate] = []
    first_small = Candidate("small", "a", 1)
    waiting.append(first_small)
    goal = waiting[-2]
    rounds = 0
    seen: set[str] = set()
    while goal.id not in seen:
        begun = choose(waiting, running, slots=slots, large=LARGE, most=unbounded)
        seen |= {each.id for each in begun}
        if rounds == 0:
            assert first_small in begun or len(begun) == slots
        waiting = [each for each in waiting if each not in begun] + [Candidate(f"new {rounds}", "a", 1)]
        running += begun
        small = [each for each in running if not is_large(each)]
        running = running[1:] if rounds % 5 == 4 else [each for each in running if each not in small]
        rounds += 1
        assert rounds < 500
    assert first_small.id in seen


def test_a_store_with_much_to_do_delays_no_other() -> None:
    waiting = [Candidate(f"{number}", "slow", 1) for number in range(50)] + [Candidate("x", "fast", 1)]
    chosen = choose(waiting, [Candidate("r", "slow", 1)], slots=3, large=LARGE, most=unbounded)
    assert [each.id for each in chosen] == ["x", "0"]


def test_pools_take_turns() -> None:
    queue = [Candidate(name, "a", 1) for name in "abcxy"]
    assert interleaved([queue[:3], queue[3:], []]) == [queue[0], queue[3], queue[1], queue[4], queue[2]]


# ------------------------------------------------------------------------------------------------------------ pauses


@given(st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_pauses_are_bounded(attempts: int, spread: float) -> None:
    assert 0 <= pause_s(attempts, spread, SETTINGS) <= 60


def test_pauses_double_up_to_the_last() -> None:
    assert [pause_s(attempts, 1.0, SETTINGS) for attempts in (1, 2, 3, 6, 7, 100)] == [1, 2, 4, 32, 60, 60]
    assert pause_s(5, 0.25, SETTINGS) == 4


# ---------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("error", "state", "counts"),
    [
        (Unavailable("down"), UploadState.WAITING, True),
        (TlsFailed("no"), UploadState.WAITING, True),
        (IntegrityError("differs"), UploadState.WAITING, False),
        (NoSpace("full"), UploadState.WAITING, False),
        (DeviceFault("EIO"), UploadState.WAITING, False),
        (AccessDenied("who?"), UploadState.REFUSED, False),
        (AlreadyExists("taken"), UploadState.FAILED, False),
        (TooLarge("huge"), UploadState.FAILED, False),
        (NotFound("no bucket"), UploadState.FAILED, False),
        (StagedCopyDamaged("rotten"), UploadState.FAILED, False),
    ],
)
def test_what_a_failure_means(error: StorageError, state: UploadState, counts: bool) -> None:
    verdict = judge(error)
    assert (verdict.state, verdict.speaks_against_store) == (state, counts)


def test_errors_are_told_as_they_were() -> None:
    for error in (AlreadyExists("taken", ref="x"), StagedCopyDamaged("rotten", ref="x")):
        again = told({"kind": error.kind, "message": error.message, "details": error.details}, upload="u")
        assert type(again) is type(error)
        assert (again.message, again.details) == (error.message, {"ref": "x", "upload": "u"})
    unknown = told({"kind": "Retry", "message": "of a later release", "details": {}})
    assert (type(unknown), unknown.message) == (StoreError, "of a later release")


# ----------------------------------------------------------------------------------------------------------- breaker


def test_a_breaker_opens_after_failures_in_a_row_and_lets_one_probe_through() -> None:
    breaker = Breaker()
    for now in (0.0, 1.0):
        breaker = breaker.failed(now, SETTINGS)
        assert breaker.most(now, 4) == 4
    breaker = breaker.failed(2.0, SETTINGS)
    assert [breaker.state(now) for now in (2.0, 6.9, 7.0, 1e9)] == [
        BreakerState.OPEN,
        BreakerState.OPEN,
        BreakerState.HALF_OPEN,
        BreakerState.HALF_OPEN,
    ]
    assert [breaker.most(now, 4) for now in (6.9, 7.0)] == [0, 1]
    again = breaker.failed(7.0, SETTINGS)
    assert (again.state(16.9), again.state(17.0)) == (BreakerState.OPEN, BreakerState.HALF_OPEN)
    assert breaker.probed_now(3.0).state(3.0) is BreakerState.HALF_OPEN


@given(st.lists(st.floats(0, 1000), max_size=60))
def test_probes_come_at_bounded_intervals(waits: list[float]) -> None:
    breaker, now = Breaker(), 0.0
    for wait in waits:
        now += wait
        before = breaker
        breaker = breaker.failed(now, SETTINGS)
        if before.state(now) is BreakerState.OPEN:
            assert breaker == before, "what had begun before tells nothing new"
        assert breaker.state(now + SETTINGS.last_probe_s) is not BreakerState.OPEN


@pytest.mark.parametrize(
    "wrong",
    [
        {"unstored_share": 0.0},
        {"unstored_share": 1.1},
        {"concurrency": 0},
        {"breaker_failures": 0},
        {"first_retry_s": 0.0},
        {"first_retry_s": 10.0, "last_retry_s": 9.0},
        {"first_probe_s": 10.0, "last_probe_s": 9.0},
    ],
)
def test_wrong_settings_are_refused_at_once(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"must be|more than 0"):
        WritebackSettings(**wrong)  # type: ignore[arg-type]
