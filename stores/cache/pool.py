"""One pool: a directory, its ledger, and the tasks that keep both in order.

Everything that touches the directory runs in the pool's own threads with a deadline, and every transaction of the ledger has
one. What fails or hangs makes the pool sick (`PoolSick`): it is bypassed, probed, and taken back when it is well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from stores.cache.database import Database
from stores.cache.ledger import Entry, Reservation
from stores.cache.policy import Limits, PoolState, Refuse, Wait
from stores.contract import GiB, MiB


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """What the operator decides about one pool. Sizes are bytes, times seconds."""

    name: str
    directory: Path
    limit: int
    leave_free: int = 0
    housekeeping: int = 16 * MiB
    file_mode: int = 0o600
    high: float = 0.95
    low: float = 0.85
    min_age_s: float = 0.0
    max_idle_s: float | None = None
    max_age_s: float | None = None
    lease_s: float = 30.0
    call_s: float = 30.0


@dataclass(slots=True, eq=False)
class Fill:
    """A reservation of this process, and the file that may be written below it: at most `size` bytes.

    `path` exists, is empty, and belongs to the filler until `publish` or `abandon`. `whole`: the parts, (start, end), that an
    earlier filler left. `lost` is true when the lease ran out: then nothing more may be written.
    """

    key: str
    reservation: str
    path: Path
    size: int
    whole: tuple[tuple[int, int], ...] = ()
    lost: bool = False


@dataclass(slots=True, eq=False)
class Held:
    """An entry that proved itself, and cannot go until `unpin`."""

    path: Path
    entry: Entry
    pin: int


@dataclass(frozen=True, slots=True)
class Following:
    """Somebody who lives is filling it: how far, and in which file."""

    filling: Reservation
    path: Path
    whole: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Missing:
    """Nobody has it, and nobody fetches it."""


Found: TypeAlias = Held | Following | Fill | Missing


class Pool:
    """`start` before use, `stop` after. All methods raise `PoolSick` while the pool is sick, or when it turns so."""

    def __init__(self, settings: PoolSettings, database: Database) -> None: ...

    name: str

    @property
    def healthy(self) -> bool: ...

    async def start(self) -> None: ...
    async def stop(self) -> None: ...

    async def state(self) -> PoolState:
        """The counters at this moment."""

    async def find(self, key: str, reason: str) -> Found:
        """`Held`: a hit, pinned for `reason`. `Fill`: an abandoned fill that is now the caller's. Others: nothing is claimed."""

    async def reserve(self, key: str, size: int, *, waiter: int | None = None) -> Fill | Wait | Refuse:
        """Room for `size` bytes of the object `key`, evicting what may go, and the empty file."""

    async def join_queue(self, size: int, deadline: float) -> int:
        """A number in the queue. `deadline`: seconds from now."""

    async def leave_queue(self, waiter: int) -> None: ...

    async def grow(self, fill: Fill, size: int) -> Wait | Refuse | None:
        """Room for `size` bytes in all. None: granted, and `fill.size` is that."""

    async def note(self, fill: Fill, whole: tuple[tuple[int, int], ...]) -> None:
        """These parts are written: makes them durable, and then known to followers and to whoever may take over."""

    async def publish(self, fill: Fill, *, store: str, ref: str, version: str | None, size: int, digest: str | None,
                      reason: str) -> Held:
        """The file becomes an entry, durably, pinned for the filler."""

    async def abandon(self, fill: Fill) -> None:
        """Removes the file, then gives back its room. Idempotent."""

    async def unpin(self, held: Held) -> None: ...
    async def refuse(self, held: Held, reason: str) -> None:
        """It did not prove itself to its reader: quarantined, never served again."""
