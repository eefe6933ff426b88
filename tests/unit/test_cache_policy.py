"""Decisions of the cache's policy: pure, so tried with whatever hypothesis thinks of."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.cache_policy import Lru, Ours, recency, replay, scan_heavy, sizes_of
from stores.cache import policy
from stores.cache.policy import (
    Candidate,
    Comparison,
    Evict,
    Ghost,
    Grant,
    Hold,
    Limits,
    PoolState,
    Queue,
    Refuse,
    Wait,
)

LIMIT = 1000
BYTES = st.integers(0, 2 * LIMIT)


@st.composite
def pools(draw: st.DrawFn) -> PoolState:
    used = draw(BYTES)
    return PoolState(
        limit=draw(st.integers(0, 2 * LIMIT)),
        used=used,
        reserved=draw(BYTES),
        held=draw(st.integers(0, used)),
        waiting=draw(st.integers(0, 2)),
        turn=draw(st.integers(100, 200)),
        bias=draw(st.floats(0, policy.MAX_BIAS)),
    )


@st.composite
def queues(draw: st.DrawFn) -> tuple[list[Candidate], list[Candidate]]:
    """Two queues in order of their turns, all of which differ."""
    turns = draw(st.lists(st.integers(0, 99), unique=True, max_size=12))
    entries = [
        Candidate(number, draw(st.integers(1, 300)), turn, draw(st.floats(-10, 100)))
        for number, turn in enumerate(sorted(turns))
    ]
    small = draw(st.sets(st.sampled_from(range(12))))
    return [each for each in entries if each.id in small], [each for each in entries if each.id not in small]


@given(pools(), st.integers(1, 3 * LIMIT))
def test_a_decision_keeps_the_bound_and_the_order(pool: PoolState, charge: int) -> None:
    decision = policy.decide(pool, charge)
    if charge > pool.limit:
        assert isinstance(decision, Refuse)
    elif pool.waiting:
        assert isinstance(decision, Wait)
    elif isinstance(decision, Grant):
        assert pool.used + pool.reserved + charge <= pool.limit
    elif isinstance(decision, Evict):
        assert 0 < decision.charge <= pool.used - pool.held
        assert pool.used - decision.charge + pool.reserved + charge == pool.limit
    else:
        assert pool.used + pool.reserved + charge - pool.limit > pool.used - pool.held


@given(pools(), queues(), st.integers(1, LIMIT), st.floats(0, 50), st.none() | st.integers(0, 5))
def test_victims_suffice_and_no_more(
    pool: PoolState,
    entries: tuple[list[Candidate], list[Candidate]],
    need: int,
    min_age_s: float,
    at_most: int | None,
) -> None:
    small, main = entries
    plan = policy.victims(pool, small, main, need, min_age_s=min_age_s, at_most=at_most)
    assert plan.freed == sum(each.charge for each in plan.evict)
    assert len({each.id for each in plan.evict}) == len(plan.evict)
    assert all(not 0 <= each.age < min_age_s for each in plan.evict)
    free = [each for each in small + main if not 0 <= each.age < min_age_s]
    if plan.freed < need:
        assert len(plan.evict) == (len(free) if at_most is None else min(at_most, len(free)))
    else:
        assert plan.freed - plan.evict[-1].charge < need
    for queue in (small, main):  # of each queue the oldest go, in their order
        gone = [each for each in plan.evict if each in queue]
        assert gone == [each for each in queue if each in free][: len(gone)]


@given(pools(), queues(), st.integers(1, LIMIT))
def test_without_a_bias_it_is_lru(pool: PoolState, entries: tuple[list[Candidate], list[Candidate]], need: int) -> None:
    unbiased = PoolState(pool.limit, pool.used, pool.reserved, pool.held, turn=pool.turn)
    plan = policy.victims(unbiased, *entries, need)
    oldest_first = sorted(entries[0] + entries[1], key=lambda each: each.turn)
    assert plan.evict == oldest_first[: len(plan.evict)]


@given(pools(), queues(), st.integers(1, LIMIT))
def test_no_more_is_drawn_than_is_looked_at(
    pool: PoolState, entries: tuple[list[Candidate], list[Candidate]], need: int
) -> None:
    drawn = 0

    def count(queue: list[Candidate]) -> Iterator[Candidate]:
        nonlocal drawn
        for each in queue:
            drawn += 1
            yield each

    plan = policy.victims(pool, count(entries[0]), count(entries[1]), need)
    assert drawn <= len(plan.evict) + 2


def test_a_bias_lets_what_was_used_once_go_first() -> None:
    small, main = [Candidate(1, 10, turn=90)], [Candidate(2, 10, turn=30)]

    def first(bias: float) -> int:
        pool = PoolState(LIMIT, LIMIT, 0, 0, turn=100, bias=bias)
        return policy.victims(pool, small, main, 1).evict[0].id

    assert [first(bias) for bias in (0.0, 2.0, 3.0)] == [2, 2, 1]


@pytest.mark.parametrize(
    ("pins", "dirty", "evicting", "age", "hold"),
    [
        (1, True, True, 0.0, Hold.PINNED),
        (0, True, True, 0.0, Hold.DIRTY),
        (0, False, True, 0.0, Hold.EVICTING),
        (0, False, False, 9.0, Hold.TOO_YOUNG),
        (0, False, False, 10.0, None),
        (0, False, False, -1.0, None),
    ],
)
def test_the_first_reason_to_stay(pins: int, dirty: bool, evicting: bool, age: float, hold: Hold | None) -> None:
    assert policy.hold_of(pins=pins, dirty=dirty, evicting=evicting, age=age, min_age_s=10.0) is hold


@given(pools(), st.floats(0, 1), st.floats(0, 1))
def test_pressure_is_relieved_below_the_low_mark(pool: PoolState, one: float, other: float) -> None:
    limits = Limits(pool.limit, high=max(one, other), low=min(one, other))
    need = policy.pressure(pool, limits)
    occupied = pool.used + pool.reserved
    if occupied <= pool.limit * limits.high:
        assert need == 0
    else:
        assert occupied - need <= pool.limit * limits.low + 1


SEEN = st.builds(
    Comparison,
    horizon=st.integers(0, 50),
    recent=st.integers(300, LIMIT),
    bias=st.floats(0, policy.MAX_BIAS),
    credit=st.floats(-5, policy.MAX_CREDIT),
)


@given(SEEN, st.integers(0, 100), st.integers(1, 300))
def test_a_hit_that_lru_would_have_had_teaches_nothing(seen: Comparison, turn: int, charge: int) -> None:
    after = policy.hit(seen, turn=turn, charge=charge, limit=LIMIT)
    if turn > seen.horizon:
        assert after == seen
    else:
        assert after.recent == seen.recent + charge
        assert seen.bias <= after.bias <= policy.MAX_BIAS
        assert seen.credit <= after.credit <= policy.MAX_CREDIT


@given(SEEN, st.none() | st.builds(Ghost, st.sampled_from(Queue), st.integers(0, 100), st.integers(1, 300)))
def test_a_miss_that_lru_would_not_have_had_is_a_loss(seen: Comparison, ghost: Ghost | None) -> None:
    queue, after = policy.missed(seen, ghost, charge=100, limit=LIMIT)
    assert queue is (Queue.SMALL if ghost is None else Queue.MAIN)
    if ghost is not None and ghost.turn > seen.horizon:
        assert after.recent == seen.recent - ghost.charge + 100
        assert 0 <= after.bias <= seen.bias
        assert after.credit < seen.credit
        return
    assert after.recent == seen.recent + 100
    assert after.credit == seen.credit
    suggested = ghost is not None and ghost.queue is Queue.MAIN and seen.credit >= 0
    assert after.bias >= seen.bias if suggested else after.bias == seen.bias


def test_losses_are_forgiven_and_gains_kept() -> None:
    assert policy.forgiven(Comparison(credit=-2.0)).credit == 0.0
    assert policy.forgiven(Comparison(credit=0.5)).credit == 0.5


def test_lru_forgets_what_is_beyond_its_horizon() -> None:
    seen = Comparison(horizon=5, recent=100)
    assert policy.beyond(seen, turn=9, charge=30) == Comparison(horizon=9, recent=70)
    assert policy.forgotten(seen, turn=5, charge=30) == seen
    assert policy.forgotten(seen, turn=6, charge=30) == Comparison(horizon=5, recent=70)


def test_scans_are_survived_and_pure_recency_is_not_lost() -> None:
    """Two of the traces of benchmarks/cache_policy.py, which has all."""
    gains = {}
    for make in (scan_heavy, recency):
        rng = random.Random(5)
        trace = make(rng)
        sizes = sizes_of(rng, trace)
        limit = int(sum(sizes.values()) * 0.03)
        ours, lru = (replay(cache, trace, sizes).objects for cache in (Ours(limit), Lru(limit)))
        gains[make] = ours / lru
    assert gains[scan_heavy] > 1.1
    assert gains[recency] > 0.998
