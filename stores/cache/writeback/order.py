"""What the upload queue decides: which upload is next, how long a failed one waits, when a store is left alone. Pure functions.

Oldest first, with two exceptions. Small uploads wait for no large one: large ones may take all turns but one, so that a turn
for small ones comes soon, while several large ones still share a fast store. And the store with the fewest uploads under way
comes first: a slow store, however much waits for it, delays no other. No upload starves: in its store and lane it is served
in order, and a turn that nobody else may have is never left free.

Pauses grow exponentially with full jitter (Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015): after an
outage, hosts do not come back all at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import chain, zip_longest

from stores.cache.schema import UploadState
from stores.cache.settings import WritebackSettings
from stores.cache.writeback.errors import StagedCopyDamaged
from stores.errors import AccessDenied, Retry, StorageError, TlsFailed, Unavailable


@dataclass(frozen=True, slots=True)
class Candidate:
    """An upload that waits or is under way; `size` is the bytes to be sent."""

    id: str
    store: str
    size: int


def interleaved(queues: Sequence[Sequence[Candidate]]) -> list[Candidate]:
    """The uploads of several pools, in the order of each: ages in different ledgers do not compare."""
    return [each for each in chain.from_iterable(zip_longest(*queues)) if each is not None]


def choose(
    waiting: Sequence[Candidate],
    running: Sequence[Candidate],
    *,
    slots: int,
    large: int,
    most: Callable[[str], int],
) -> list[Candidate]:
    """Which of `waiting`, the oldest first, begin now. `slots`: uploads at once; `large`: as `WritebackSettings`; `most`: how
    many a store may have under way now."""
    begun: list[Candidate] = []
    left = list(waiting)
    under_way = Counter(each.store for each in running)
    large_ones = sum(each.size >= large for each in running)
    while len(running) + len(begun) < slots:
        open_to = [
            (under_way[each.store], place)
            for place, each in enumerate(left)
            if under_way[each.store] < most(each.store) and (each.size < large or large_ones < max(1, slots - 1))
        ]
        if not open_to:
            break
        chosen = left.pop(min(open_to)[1])
        begun.append(chosen)
        under_way[chosen.store] += 1
        large_ones += chosen.size >= large
    return begun


def pause_s(attempts: int, spread: float, settings: WritebackSettings) -> float:
    """Seconds until the next attempt after so many, `spread` being a random number in [0, 1)."""
    doublings = min(max(0, attempts - 1), 64)
    return spread * min(settings.last_retry_s, settings.first_retry_s * 2.0**doublings)


# ------------------------------------------------------------------------------------------------------- failures


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a failed attempt means. `speaks_against_store`: others would fail as well."""

    state: UploadState
    speaks_against_store: bool = False


def judge(error: StorageError) -> Verdict:
    """Whatever may go away by itself, or by what an operator does, is tried again for ever."""
    if isinstance(error, AccessDenied):
        return Verdict(UploadState.REFUSED)
    if isinstance(error, StagedCopyDamaged) or error.retry is Retry.NO:
        return Verdict(UploadState.FAILED)
    return Verdict(UploadState.WAITING, isinstance(error, Unavailable | TlsFailed))


# ------------------------------------------------------------------------------------------------ circuit breaker


class BreakerState(StrEnum):
    CLOSED = "closed"  # uploads begin as they come
    OPEN = "open"  # none begins
    HALF_OPEN = "half-open"  # one does, as a probe


@dataclass(frozen=True, slots=True)
class Breaker:
    """Of one store. Times are of a clock that nobody sets."""

    failures: int = 0  # in a row
    until: float | None = None  # it is open until then, and half-open after that

    def state(self, now: float) -> BreakerState:
        if self.until is None:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now < self.until else BreakerState.HALF_OPEN

    def most(self, now: float, slots: int) -> int:
        """Uploads that the store may have under way."""
        return {BreakerState.CLOSED: slots, BreakerState.OPEN: 0, BreakerState.HALF_OPEN: 1}[self.state(now)]

    def failed(self, now: float, settings: WritebackSettings) -> Breaker:
        """The store did not answer, or not as one should. What fails while it is open had begun before."""
        if self.state(now) is BreakerState.OPEN:
            return self
        failures = self.failures + 1
        if failures < settings.breaker_failures:
            return Breaker(failures)
        doublings = min(failures - settings.breaker_failures, 64)
        wait_s = min(settings.last_probe_s, settings.first_probe_s * 2.0**doublings)
        return Breaker(failures, now + wait_s)

    def probed_now(self, now: float) -> Breaker:
        """An operator wants to know."""
        return self if self.until is None else replace(self, until=min(self.until, now))
