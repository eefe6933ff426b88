"""What the cache decides, without waiting and without doing: pure functions of a snapshot of one pool.

Eviction is S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023), on bytes instead of counts: an
object enters a small probationary queue and reaches the main queue only when it was used again before its turn came, or when
it comes back soon after it was evicted (its key is then still a ghost). A scan of objects used once passes through the small
queue and never touches what is in daily use. `docs/cache.md` shows the traces on which it was chosen.

Charges are bytes on disk, metadata and rounding included.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

MAX_FREQUENCY = 3  # the paper's two bits
SMALL_SHARE = (
    0.1  # of the limit, for the probationary queue: the paper's choice, confirmed by benchmarks/cache_policy.py
)


class Queue(StrEnum):
    SMALL = "small"
    MAIN = "main"


class Hold(StrEnum):
    """Why an entry may not go now."""

    PINNED = "pinned"
    DIRTY = "dirty"
    FILLING = "filling"
    TOO_YOUNG = "too young"


@dataclass(frozen=True, slots=True)
class Candidate:
    """An entry as the policy sees it. `age` and `idle` are seconds since it was published and last used."""

    id: int
    charge: int
    queue: Queue
    frequency: int
    hold: Hold | None
    age: float = 0.0
    idle: float = 0.0


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
class PoolState:
    """The pool's counters at this moment. `limit` is the stricter of the configured bytes and what the free space to leave
    allows; `held` is what pinned, dirty and filling entries occupy of `used`."""

    limit: int
    used: int
    reserved: int
    small: int  # bytes of `used` in the probationary queue
    held: int
    waiting: int = 0  # requests that came before this one and have no room yet


@dataclass(slots=True)
class Plan:
    """What an eviction run does: entries that go, and what happened to those that stayed."""

    evict: list[int] = field(default_factory=list)
    keep: list[tuple[int, int]] = field(
        default_factory=list
    )  # (entry, frequency): to the main queue's end, in this order
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


def hold_of(*, pins: int, dirty: bool, filling: bool, age: float, limits: Limits) -> Hold | None:
    """The first reason, if any, for which an entry may not go."""
    if pins:
        return Hold.PINNED
    if dirty:
        return Hold.DIRTY
    if filling:
        return Hold.FILLING
    if age < limits.min_age_s:
        return Hold.TOO_YOUNG
    return None


def overdue(entry: Candidate, limits: Limits) -> bool:
    """Whether an entry has to go by age alone."""
    if entry.hold is not None:
        return False
    too_old = limits.max_age_s is not None and entry.age > limits.max_age_s
    too_idle = limits.max_idle_s is not None and entry.idle > limits.max_idle_s
    return too_old or too_idle


def victims(pool: PoolState, small: Iterable[Candidate], main: Iterable[Candidate], need: int) -> Plan:
    """Choose entries whose charges sum to at least `need`, as far as there are any.

    `small` and `main` are the queues, oldest first; they may be lazy, and no more is drawn than is looked at.
    """
    walk = _Walk(pool, iter(small), iter(main))
    while walk.plan.freed < need and walk.step():
        pass
    return walk.finish()


class _Walk:
    """One run of the two hands over their queues."""

    def __init__(self, pool: PoolState, small: Iterator[Candidate], main: Iterator[Candidate]) -> None:
        self.plan = Plan()
        self._small = small
        self._main = main
        self._again: deque[Candidate] = deque()  # entries that this run put at the main queue's end
        self._small_bytes = pool.small
        self._small_share = int(pool.limit * SMALL_SHARE)
        self._small_done = False

    def step(self) -> bool:
        """Look at one entry; False when there is none left to look at."""
        if self._small_bytes > self._small_share and self._step_small():
            return True
        return self._step_main() or self._step_small()

    def _step_small(self) -> bool:
        entry = next(self._small, None)
        if entry is None:
            self._small_bytes = 0
            return False
        self._small_bytes -= entry.charge
        if entry.hold is not None:
            self._pass_over(entry.hold)
        elif entry.frequency > 1:
            self._again.append(Candidate(entry.id, entry.charge, Queue.MAIN, 0, None))
        else:
            self._evict(entry)
        return True

    def _step_main(self) -> bool:
        entry = next(self._main, None)
        if entry is None:
            if not self._again:
                return False
            entry = self._again.popleft()
        if entry.hold is not None:
            self._pass_over(entry.hold)
        elif entry.frequency > 0:
            self._again.append(Candidate(entry.id, entry.charge, Queue.MAIN, entry.frequency - 1, None))
        else:
            self._evict(entry)
        return True

    def finish(self) -> Plan:
        self.plan.keep = [(entry.id, entry.frequency) for entry in self._again]
        return self.plan

    def _evict(self, entry: Candidate) -> None:
        self.plan.evict.append(entry.id)
        self.plan.freed += entry.charge

    def _pass_over(self, hold: Hold) -> None:
        self.plan.held[hold] = self.plan.held.get(hold, 0) + 1
