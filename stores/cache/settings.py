"""What the operator decides about one pool. An invalid value is a `ValueError` when the object is made, never later."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from stores.cache.policy import Limits
from stores.contract import GiB, MiB

HOUSEKEEPING = 16 * MiB
"""Bytes of a pool's limit for what is not an object: the folders (1 MiB on ext4), the ledger's file, which grows with the
entries, within their charges, and its write-ahead log (4 MiB between two checkpoints)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """Sizes are bytes, times seconds."""

    name: str
    """Identity of the pool, the same on all hosts that share it."""

    directory: Path
    """Of the pool alone. It is made where it is missing, but not its parent: that may be a mount point with nothing mounted."""

    limit: int
    """Real bytes on disk that the pool never takes more of, `housekeeping` included."""

    leave_free: int = 0
    """Free bytes to leave on the file system. The stricter of this and `limit` counts."""

    housekeeping: int = HOUSEKEEPING

    file_mode: int = 0o600
    """Permissions of entries. 0o640 lets the directory's group read them: hypervisors that run as other users."""

    high: float = 0.95
    low: float = 0.85
    """Shares of the limit: above `high`, entries go until it is `low`."""

    min_age_s: float = 0.0
    max_idle_s: float | None = None
    max_age_s: float | None = None
    """Entries stay for that long at least, go when nobody used them for so long, and are kept no longer than that."""

    quarantine_s: float = 24 * 3600.0
    """How long a copy that did not prove itself is kept to be looked at, as long as its room is not needed."""

    lease_s: float = 30.0
    """Who is silent for so long is taken for dead: its fills go to others."""

    call_s: float = 30.0
    """Longest time for one touch of directory or ledger."""

    sync_rate: int = 8 * MiB
    """Bytes per second that the disk takes at least: what is synced gets more time by its size."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z_.-]{0,63}", self.name):
            raise ValueError(f"{self.name!r}: a pool's name has up to 64 letters, digits, dots, dashes and underscores")
        if not self.directory.is_absolute():
            raise ValueError(f"{self.directory}: must be an absolute path")
        if self.limit <= self.housekeeping:
            raise ValueError(f"limit: {self.limit} bytes are not more than the {self.housekeeping} for housekeeping")
        if self.file_mode & 0o600 != 0o600 or self.file_mode & ~0o644:
            raise ValueError(f"file_mode {self.file_mode:o}: 600, 640 or 644")
        if not 0 < self.low <= self.high <= 1:
            raise ValueError("low and high are shares of the limit: 0 < low <= high <= 1")
        if min(self.lease_s, self.call_s, self.sync_rate) <= 0 or self.leave_free < 0:
            raise ValueError("lease_s, call_s and sync_rate must be more than 0, leave_free not less")

    @property
    def limits(self) -> Limits:
        """As the policy sees them."""
        return Limits(
            limit=self.limit - self.housekeeping,
            high=self.high,
            low=self.low,
            min_age_s=self.min_age_s,
            max_idle_s=self.max_idle_s,
            max_age_s=self.max_age_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WritebackSettings:
    """How what was staged gets to its stores. Sizes are bytes, times seconds."""

    unstored_share: float = 0.5
    """Share of each pool's limit that what no store has yet may take. When it is reached, staging waits."""

    concurrency: int = 4
    """Uploads at once, of all pools together."""

    large: int = GiB
    """An upload of that size or more is a large one: one turn less than `concurrency` is open to these, so that small ones
    never wait for all of them."""

    first_retry_s: float = 1.0
    last_retry_s: float = 300.0
    """Longest pause after the first failure of an upload, which doubles with each further one, up to that. The pause itself is
    random, between nothing and the longest."""

    breaker_failures: int = 3
    """After so many failures in a row that speak against a store, it is left alone."""

    first_probe_s: float = 5.0
    last_probe_s: float = 120.0
    """A store that is left alone gets one upload as a probe after that time, which doubles with each that fails, up to that."""

    def __post_init__(self) -> None:
        if not 0 < self.unstored_share <= 1:
            raise ValueError("unstored_share: a share of the pool's limit, more than 0 and at most 1")
        if min(self.concurrency, self.breaker_failures, self.large) < 1:
            raise ValueError("concurrency, breaker_failures and large must be at least 1")
        if not 0 < self.first_retry_s <= self.last_retry_s or not 0 < self.first_probe_s <= self.last_probe_s:
            raise ValueError("first_retry_s and first_probe_s must be more than 0, and not more than the last ones")

    def unstored_limit(self, pool: PoolSettings) -> int:
        """Bytes of objects in that pool that no store has yet, at most."""
        return int(pool.limits.limit * self.unstored_share)
