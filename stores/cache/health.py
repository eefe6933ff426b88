"""Whether a pool can be used, and when to try again: decisions only, by an injected clock."""

from __future__ import annotations

from collections.abc import Callable

from stores.errors import (
    AccessDenied,
    DeviceFault,
    InvalidReference,
    NoSpace,
    NotFound,
    Retry,
    StoreError,
    Unavailable,
)

FIRST_PROBE_S = 1.0
LAST_PROBE_S = 60.0


class PoolSick(StoreError):
    """The pool's disk, mount or ledger failed or did not answer. It is bypassed, and tried again later."""

    retry = Retry.YES


_AILMENTS = (PoolSick, DeviceFault, NoSpace, Unavailable, AccessDenied, NotFound, InvalidReference)
"""What a healthy pool never gives: `NoSpace` although the ledger had room, `NotFound` and `InvalidReference` for its own
folders, `Unavailable` from the ledger's database."""


def is_ailment(error: StoreError) -> bool:
    """Whether a failed call on directory or ledger speaks against the pool, not against what was asked of it."""
    return isinstance(error, _AILMENTS)


class Health:
    """`healthy` at first. Each failed probe doubles the time to the next."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.ailment: str | None = None
        self._wait_s = FIRST_PROBE_S
        self._next = 0.0

    @property
    def healthy(self) -> bool:
        return self.ailment is None

    @property
    def probe_in_s(self) -> float:
        """Seconds until the next probe of a sick pool is due."""
        return max(0.0, self._next - self._clock())

    def fails(self, why: str) -> bool:
        """Something failed. Whether the pool was healthy until now."""
        was_healthy = self.healthy
        if was_healthy:
            self.ailment = why
            self._wait_s = FIRST_PROBE_S
            self._next = self._clock() + self._wait_s
        return was_healthy

    def probe_failed(self, why: str) -> None:
        self.ailment = why
        self._wait_s = min(LAST_PROBE_S, 2 * self._wait_s)
        self._next = self._clock() + self._wait_s

    def recovers(self) -> None:
        self.ailment = None
