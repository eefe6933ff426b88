"""The upload queue of one process: what is staged in its pools gets to its stores, whatever restarts and outages come.

    staging()  ->  [the caller fills a file]  ->  commit()  ->  uploaded, tried again and again  ->  stored, an event

After `commit` the bytes and the intent to upload them are durable, and go on after a crash without anybody asking: by this
process when it comes again, or by another one that shares the pool.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import ClassVar, Protocol

from stores.cache.pool import Pool
from stores.cache.settings import WritebackSettings
from stores.contract import DataStore, Kind, ObjectInfo
from stores.to import DataStoreTO

TICK_S = 5.0


class UploadState(StrEnum):
    """What an upload is at."""

    QUEUED = "queued"  # waits for room; nothing of it is on disk
    STAGING = "staging"  # its file is being filled
    WAITING = "waiting"  # for its turn, or for its next attempt
    SENDING = "sending"
    REFUSED = "refused"  # the store refuses our credentials: goes on with new ones, or when an operator says so
    FAILED = "failed"  # trying again would not help: an operator retries or cancels it
    CANCELLING = "cancelling"  # what the store has of it is still to be removed
    STORED = "stored"  # the store confirmed it; kept until that was acknowledged
    CANCELLED = "cancelled"  # the same


@dataclass(frozen=True, slots=True)
class Upload:
    """One upload as it is now. Sizes are bytes. Free of secrets."""

    id: str
    pool: str
    store: str
    ref: str
    token: str
    size: int
    state: UploadState
    created: float  # seconds since the epoch
    age_s: float
    attempts: int
    sent: int  # confirmed by the store, since the latest attempt began or from before it
    resumed: int  # of these, what an earlier attempt had sent
    error: dict[str, object] | None = None  # of the latest attempt: kind, message
    next_attempt_s: float | None = None  # in so many seconds, of one that waits
    version: str | None = None  # what the store said, of one that is stored
    finished: float | None = None  # seconds since the epoch


@dataclass(frozen=True, slots=True)
class Figures:
    """For metrics. Of all pools that are well; the counts of what happened are since this process began."""

    unstored_bytes: int = 0
    unstored: int = 0  # uploads: staged and not stored, those that failed included
    failed: int = 0
    refused: int = 0
    oldest_s: float = 0.0  # age of the oldest of them
    attempts: int = 0
    failures: int = 0
    stored: int = 0
    sent_bytes: int = 0
    resumed_bytes: int = 0  # did not have to be sent again
    breakers: dict[str, str] = field(default_factory=dict)  # by store id: closed, open, half-open


class StagingFile(Protocol):
    """A `PendingFile` whose `commit` makes an upload of it."""

    kind: ClassVar[Kind] = Kind.LOCAL_PATH
    path: Path
    size: int
    """Bytes that may be written: room is reserved for so many."""

    async def grow(self, size: int) -> None:
        """Room for `size` bytes in all, before more is written. `CacheExhausted`, `LargerThanCache` or `UploadsFull` when
        there is none until the staging's wait is over."""
        ...

    async def commit(self) -> ObjectInfo:
        """fsync of file and folder, entry and upload durable in one step; the info's `upload` is its id. `version` is None:
        no store has it yet. Idempotent."""
        ...


class UploadQueue:
    """`start` after the pools, `aclose` before them. All methods may be cancelled, and leave nothing behind."""

    def __init__(
        self,
        pools: Sequence[Pool],
        settings: WritebackSettings,
        *,
        credentials: Path,
        open_store: Callable[[DataStoreTO], DataStore],
        clock: Callable[[], float] = time.monotonic,
        spread: Callable[[], float] = random.random,
        tick_s: float = TICK_S,
    ) -> None:
        """`credentials`: a directory of mode 0700 for what the stores need to know us by, made where it is missing, but not its
        parent. `open_store`: `Resolver.store`. `clock` times breakers, `spread` gives random numbers in [0, 1) for back-off,
        `tick_s` is the longest time between two looks at what there is to do."""

    async def start(self) -> None:
        """Goes on with what earlier processes left."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Stops at once; what was under way is gone on with at the next start. Idempotent."""
        raise NotImplementedError

    def staging(
        self,
        to: DataStoreTO,
        store: DataStore,
        ref: str,
        *,
        token: str,
        size: int | None,
        replace: bool,
        wait_s: float,
        announce: bool = True,
    ) -> AbstractAsyncContextManager[StagingFile]:
        """A file in a pool, to be filled with at most `size` bytes (None: unknown, see `grow`) and then committed. Leaving
        without commit removes it.

        `store` is what `to` means. `token` names the write: what is staged for the same store, ref and token already is
        `AlreadyStaged` (ask `staged` first). Waits at most `wait_s` seconds for room, first come first served; then
        `UploadsFull` or `CacheExhausted`. `announce`: whether its end becomes an event. Raises as well `LargerThanCache`,
        `CacheUnavailable`, `QueueDraining`, `StoreUnsupported` where the store takes no uploads.
        """
        raise NotImplementedError

    async def staged(self, store: DataStore, ref: str, *, token: str) -> ObjectInfo | None:
        """What that write has staged already, if it has: without `upload` once it is stored. Raises the error of an upload that
        failed."""
        raise NotImplementedError

    async def stored(self, upload: str, *, deadline_s: float | None) -> ObjectInfo:
        """The object once the store has confirmed it. Raises the error of an upload that failed; `UploadCancelled`,
        `UploadUnknown`; `UploadPending` after `deadline_s` seconds (None: never)."""
        raise NotImplementedError

    async def list(self) -> list[Upload]:
        """All that has not ended, and what has ended and was not acknowledged; per pool, the oldest first."""
        raise NotImplementedError

    async def show(self, upload: str) -> Upload:
        """Raises `UploadUnknown`."""
        raise NotImplementedError

    async def retry(self, upload: str | None = None) -> int:
        """Try now: that one, or all that wait, were refused or failed. How many. `UploadUnknown`, `UploadOver`."""
        raise NotImplementedError

    async def cancel(self, upload: str) -> Upload:
        """Gives it up: its bytes go from this host, and what the store has of it is removed as soon as the store can be
        reached. `UploadOver` when it was stored before that. Idempotent. Raises `UploadUnknown`."""
        raise NotImplementedError

    async def drain(self, *, deadline_s: float | None = None) -> bool:
        """Stages nothing new from now on (until `resume`, or a restart), and waits until everything is stored, until only what
        needs an operator is left, or until the deadline. Whether everything is stored."""
        raise NotImplementedError

    def resume(self) -> None:
        """Stage again."""

    async def events(self, *, limit: int = 100) -> Sequence[Upload]:
        """Uploads that ended (`stored` or `cancelled`) and were to be announced: the same ones again until each is
        acknowledged, over restarts."""
        raise NotImplementedError

    async def acknowledge(self, upload: str) -> None:
        """That event has arrived: it is forgotten. Idempotent."""
        raise NotImplementedError

    async def figures(self) -> Figures:
        raise NotImplementedError

    def named(self, to: DataStoreTO, store: str) -> None:
        """A command names that store (by its id): what waits for it goes on with these credentials. Never blocks."""
