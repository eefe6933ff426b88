"""An upload queue to try: over a real pool and a store in memory, with clocks that the test moves."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from stores.backends.memory import MemoryStore
from stores.cache.database import Database
from stores.cache.directory import LEDGER
from stores.cache.ledger import check_sums
from stores.cache.ledger.uploads import Upload
from stores.cache.pool import Pool
from stores.cache.settings import PoolSettings, WritebackSettings
from stores.cache.sqlite import SqliteDatabase, boot_clock
from stores.cache.writeback.queue import UploadQueue
from stores.contract import MiB, ObjectInfo
from stores.errors import AccessDenied
from stores.to import S3TO, DataStoreTO
from tests.doubles.caches import nothing_left, numbers_of, pool_settings
from tests.doubles.shaky_store import ShakyStore
from tests.objects import content

ROOM = 16 * MiB
QUICK = WritebackSettings(first_retry_s=0.01, last_retry_s=0.05, first_probe_s=0.01, last_probe_s=0.05)
SECRET = "the first secret"


def bucket(secret: str = SECRET) -> S3TO:
    """What a command says of the store."""
    return S3TO.model_validate({"bucketName": "bucket", "accessKey": "key", "secretKey": secret})


class PatientClock:
    """Goes as the real one, but for moments in which nobody asks it: a process that was not let run loses no lease by that."""

    def __init__(self, most_s: float = 0.1) -> None:
        self._most_s = most_s
        self._lock = threading.Lock()
        self._asked = self._told = boot_clock()

    def __call__(self) -> float:
        with self._lock:
            now = boot_clock()
            self._told += min(now - self._asked, self._most_s)
            self._asked = now
            return self._told


class Host:
    """A process with one pool: `start`, and `stop` or `die`; then start again. `jump` is how far clocks have moved."""

    def __init__(
        self,
        root: Path,
        *,
        settings: WritebackSettings = QUICK,
        room: int = ROOM,
        lease_s: float = 30.0,
        name: str = "a",
        shared: Callable[[], Database] | None = None,
        clock: Callable[[], float] = boot_clock,
    ) -> None:
        """`shared`: the ledger of a pool that other hosts use as well, in place of one beside the entries. `clock`: of
        leases."""
        self.root = root
        self.settings = settings
        self.shared = shared
        self.clock = clock
        self.pool_settings: PoolSettings = replace(pool_settings(root / "pool", room=room), lease_s=lease_s)
        self.state = root / f"credentials-{name}"
        self.store = ShakyStore(MemoryStore("memory"))
        self.secret = SECRET
        self.jump = 0.0
        self.wall_jump = 0.0
        self.opened: list[str] = []  # secrets
        self._failures = 0

    def open_store(self, to: DataStoreTO) -> ShakyStore:
        assert isinstance(to, S3TO)
        assert to.secretKey is not None
        self.opened.append(to.secretKey.reveal())
        if to.secretKey.reveal() != self.secret:
            self.store.failure = AccessDenied("wrong key")
        elif isinstance(self.store.failure, AccessDenied):
            self.store.failure = None
        return self.store

    async def start(self) -> None:
        def clock() -> float:
            return self.clock() + self.jump

        database = self.shared() if self.shared else self._database(clock)
        self.pool = Pool(self.pool_settings, database, lease_clock=clock)
        await self.pool.start()
        assert self.pool.healthy, self.pool.ailment
        self.queue = UploadQueue(
            [self.pool],
            self.settings,
            credentials=self.state,
            open_store=self.open_store,
            clock=lambda: time.monotonic() + self.jump,
            spread=lambda: 0.999,
            tick_s=0.02,
        )
        await self.queue.start()

    def _database(self, clock: Callable[[], float]) -> Database:
        return SqliteDatabase(
            self.pool_settings.directory / LEDGER, clock=clock, wall=lambda: time.time() + self.wall_jump
        )

    async def stop(self) -> None:
        await self.queue.aclose()
        await self.pool.stop()

    async def die(self) -> None:
        """What a killed process leaves: its files, its rows, and no lock."""
        await cut_off(self.pool, self.queue)

    async def stage(self, ref: str, data: bytes, *, token: str = "command", **changes: Any) -> ObjectInfo:
        values: dict[str, Any] = {"token": token, "size": len(data), "replace": False, "wait_s": 0.0}
        values |= changes
        async with self.queue.staging(bucket(self.secret), self.store, ref, **values) as pending:
            pending.path.write_bytes(data)
            return await pending.commit()

    async def state_of(self, upload: str | None) -> Upload:
        assert upload is not None
        return await self.queue.show(upload)

    def is_idle_after(self, *, failures: int) -> bool:
        """Whether so many attempts more have failed since this was last true, and none is under way."""
        worker = self.queue._worker
        if worker.running or worker.done.failures < self._failures + failures:
            return False
        self._failures = worker.done.failures
        return True

    async def is_tidy(self) -> None:
        """Nothing is left but objects, and copies of them."""
        await nothing_left(self.pool)
        numbers = await numbers_of(self.pool)
        assert numbers.dirty == 0
        says, comes_to = await self.pool.transact(lambda tx: check_sums(tx, self.pool.name))
        assert says == comes_to
        assert await self.store.nothing_unfinished()
        assert self.store.running == 0

    def credentials(self) -> list[str]:
        return sorted(path.name for path in self.state.iterdir())


async def cut_off(pool: Pool, queue: UploadQueue) -> None:
    """Nothing that they do from now on reaches directory or ledger."""
    pool.access.health.fails("killed")
    task = pool._task
    assert task is not None
    task.cancel()
    await queue.aclose()
    await pool._database.aclose()
    pool.access.close()


@asynccontextmanager
async def host(root: Path, **changes: Any) -> AsyncIterator[Host]:
    """At its end everything is stored or over, and nothing is left."""
    found = Host(root, **changes)
    await found.start()
    try:
        yield found
        await found.is_tidy()
    finally:
        await found.stop()


def data_of(name: str, size: int = 3 * MiB + 5) -> bytes:
    return content(size, sum(name.encode()))
