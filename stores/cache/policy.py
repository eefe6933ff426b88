"""What the cache decides, without waiting and without doing: pure functions of a snapshot of one pool.

Eviction is by recency, with a bias against objects used once, and the bias is learned. Two queues, both in order of last use,
as in 2Q (Johnson and Shasha, VLDB 1994) and ARC (Megiddo and Modha, FAST 2003): `small` for objects used once since they came,
`main` for objects used again, here or within the memory of what went lately (ghosts). The victim is the older of the two
tails, where an age in `small` counts `2 ** bias` times. With a bias of 0 that is plain LRU, exactly; with a large one a scan
of objects used once passes through and never touches what is in daily use.

What is learned from is the comparison with LRU itself (the idea of a shadow directory, as in the set duelling of Qureshi et
al., ISCA 2007). Turns count uses; `Comparison.horizon` is the turn back to which LRU would have kept everything, ghosts
included. A hit beyond the horizon is a gain over LRU and raises the bias; a miss on a ghost within it is a loss and lowers it.
An object used before that neither would have kept suggests a little more bias, but only while gains pay for losses (`credit`,
which is forgiven when a pool is opened). So on work that favours pure recency the cache is LRU, give or take one part in a
thousand, and elsewhere it leaves LRU behind.

Chosen with benchmarks/cache_policy.py, on traces with scans, drift, phases, loops, strong recency and boot storms: S3-FIFO,
SIEVE, 2Q and ARC all win on scans, and each loses to LRU by 2 to 60 % on drifting or strongly recent ones; this one on none.

Charges are bytes on disk, metadata and rounding included.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeAlias

MAX_BIAS = 10.0
STEP = 30.0  # how fast the bias moves: per pool limit of bytes that were gained or lost
SUGGESTION = 1.0  # the same for an object that only comes back after both would have dropped it
MAX_CREDIT = 1.0  # pool limits of bytes by which gains of long ago may pay for losses now


class Queue(StrEnum):
    SMALL = "small"  # used once
    MAIN = "main"  # used again


class Hold(StrEnum):
    """Why an entry may not go now."""

    PINNED = "pinned"
    DIRTY = "dirty"
    EVICTING = "evicting"
    TOO_YOUNG = "too young"


@dataclass(frozen=True, slots=True)
class Candidate:
    """An entry as the policy sees it. `age` is seconds since it was published, `turn` its last use."""

    id: int
    charge: int
    turn: int
    age: float = 0.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one pool. `high` and `low` are shares of `limit`: pressure above `high` is relieved down to `low`."""

    limit: int
    high: float = 0.95
    low: float = 0.85
    min_age_s: float = 0.0
    max_idle_s: float | None = None
    max_age_s: float | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """How the pool fares against plain LRU of the same size. See the module's text."""

    horizon: int = -1  # LRU would have kept what was used in a later turn
    recent: int = 0  # charges of that: entries and ghosts
    bias: float = 0.0  # base 2 logarithm of how much faster objects used once age
    credit: float = 0.0  # gains minus losses, in pool limits


@dataclass(frozen=True, slots=True)
class PoolState:
    """The pool's counters at this moment. `limit` is the stricter of the configured bytes and what the free space to leave
    allows; `held` is what may not be evicted of `used`."""

    limit: int
    used: int
    reserved: int
    held: int
    waiting: int = 0  # requests that came before this one and have no room yet
    turn: int = 0  # the next one
    bias: float = 0.0


@dataclass(slots=True)
class Plan:
    """What an eviction run does."""

    evict: list[Candidate] = field(default_factory=list)
    held: dict[Hold, int] = field(default_factory=dict)  # how many were passed over, by reason
    freed: int = 0


@dataclass(frozen=True, slots=True)
class Grant:
    """There is room as it is."""


@dataclass(frozen=True, slots=True)
class Evict:
    """Room can be made: at least that many bytes have to go first."""

    charge: int


@dataclass(frozen=True, slots=True)
class Wait:
    """No room now; what holds it will let go at some time, or others were here first."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """Never, in this pool."""

    reason: str


Decision: TypeAlias = Grant | Evict | Wait | Refuse


def decide(pool: PoolState, charge: int) -> Decision:
    """Whether a reservation of `charge` bytes can be made now."""
    if charge > pool.limit:
        return Refuse(f"{charge} bytes are needed and the pool holds {pool.limit}")
    if pool.waiting:
        return Wait(f"{pool.waiting} requests came first")
    missing = pool.used + pool.reserved + charge - pool.limit
    if missing <= 0:
        return Grant()
    if missing <= pool.used - pool.held:
        return Evict(missing)
    return Wait(f"{missing} bytes are missing and only {pool.used - pool.held} may be evicted")


def pressure(pool: PoolState, limits: Limits) -> int:
    """Bytes to evict in the background: 0 below the high water mark, else down to the low one."""
    occupied = pool.used + pool.reserved
    if occupied <= pool.limit * limits.high:
        return 0
    return int(occupied - pool.limit * limits.low)


def hold_of(*, pins: int, dirty: bool, evicting: bool, age: float, min_age_s: float) -> Hold | None:
    """The first reason, if any, for which an entry may not go. An age below 0 tells of a clock set back, not of youth."""
    if pins:
        return Hold.PINNED
    if dirty:
        return Hold.DIRTY
    if evicting:
        return Hold.EVICTING
    if 0 <= age < min_age_s:
        return Hold.TOO_YOUNG
    return None


def victims(
    pool: PoolState,
    small: Iterable[Candidate],
    main: Iterable[Candidate],
    need: int,
    *,
    min_age_s: float = 0.0,
    at_most: int | None = None,
) -> Plan:
    """Choose entries whose charges sum to at least `need`, as far as there are any, but no more than `at_most` of them.

    `small` and `main` are the queues' entries that nothing but their youth may hold, least recently used first; they may be
    lazy, and one more is drawn of each than goes.
    """
    plan = Plan()
    tails = [_Tail(small, min_age_s, plan), _Tail(main, min_age_s, plan)]
    faster = 2.0**pool.bias
    while plan.freed < need and (at_most is None or len(plan.evict) < at_most):
        once, again = (tail.entry for tail in tails)
        if once is None and again is None:
            break
        older = again is None or (once is not None and (pool.turn - once.turn) * faster >= pool.turn - again.turn)
        chosen = tails[0 if older else 1].take()
        plan.evict.append(chosen)
        plan.freed += chosen.charge
    return plan


class _Tail:
    """The next entry of a queue that may go."""

    def __init__(self, queue: Iterable[Candidate], min_age_s: float, plan: Plan) -> None:
        self._queue = iter(queue)
        self._min_age_s = min_age_s
        self._plan = plan
        self.entry: Candidate | None = None
        self._advance()

    def take(self) -> Candidate:
        chosen = self.entry
        assert chosen is not None
        self._advance()
        return chosen

    def _advance(self) -> None:
        for entry in self._queue:
            hold = hold_of(pins=0, dirty=False, evicting=False, age=entry.age, min_age_s=self._min_age_s)
            if hold is None:
                self.entry = entry
                return
            self._plan.held[hold] = self._plan.held.get(hold, 0) + 1
        self.entry = None


# --------------------------------------------------------------------------------------- learning from what comes


@dataclass(frozen=True, slots=True)
class Ghost:
    """What is remembered of an entry that went."""

    queue: Queue
    turn: int
    charge: int


def hit(seen: Comparison, *, turn: int, charge: int, limit: int) -> Comparison:
    """An entry last used in `turn` is used again; after this it counts as recent."""
    if turn > seen.horizon:
        return seen
    gain = charge / limit
    return replace(
        seen,
        recent=seen.recent + charge,
        bias=_within(seen.bias + STEP * gain),
        credit=min(MAX_CREDIT, seen.credit + gain),
    )


def missed(seen: Comparison, ghost: Ghost | None, *, charge: int, limit: int) -> tuple[Queue, Comparison]:
    """An object of `charge` came in, last seen as `ghost`: its queue, and what was learned. It counts as recent after this."""
    share = charge / limit
    if ghost is None:
        return Queue.SMALL, replace(seen, recent=seen.recent + charge)
    if ghost.turn > seen.horizon:
        loss = ghost.charge / limit
        return Queue.MAIN, replace(
            seen,
            recent=seen.recent - ghost.charge + charge,
            bias=_within(seen.bias - STEP * loss),
            credit=seen.credit - loss,
        )
    suggested = SUGGESTION * share if ghost.queue is Queue.MAIN and seen.credit >= 0 else 0.0
    return Queue.MAIN, replace(seen, recent=seen.recent + charge, bias=_within(seen.bias + suggested))


def forgiven(seen: Comparison) -> Comparison:
    """What was lost to LRU in former times says little about now: once in a while, look again whether a bias pays."""
    return seen if seen.credit >= 0 else replace(seen, credit=0.0)


def beyond(seen: Comparison, *, turn: int, charge: int) -> Comparison:
    """LRU drops the oldest of what it has: it was last used in `turn`."""
    return replace(seen, horizon=turn, recent=seen.recent - charge)


def forgotten(seen: Comparison, *, turn: int, charge: int) -> Comparison:
    """Something went that LRU would have lost as well: it was invalid, or its ghost is too old."""
    return seen if turn <= seen.horizon else replace(seen, recent=seen.recent - charge)


def _within(bias: float) -> float:
    return min(MAX_BIAS, max(0.0, bias))
