"""Where a ledger's transactions run: SQLite beside the entries, or PostgreSQL for a pool that several hosts share.

Both run the same synchronous functions of a SQLAlchemy connection, one transaction each, so that no `await` sits inside a
decision. Transactions of one pool are serialised: SQLite by BEGIN IMMEDIATE, PostgreSQL by locking the pool's row.

`Transaction.now` is the clock of leases, in seconds from an arbitrary point. It is the same for all who share the database
and does not follow changes of the wall clock: CLOCK_BOOTTIME on one host (a reboot ends every owner anyway, and is told by the
boot id), the server's `clock_timestamp()` across hosts.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import StaticPool

from stores.errors import DeviceFault, Unavailable

T = TypeVar("T")
BUSY_TIMEOUT_S = 30.0  # another process of this host holds the write lock: its transactions take milliseconds


@dataclass(frozen=True, slots=True)
class Transaction:
    connection: Connection
    now: float  # seconds, of the clock of leases
    wall: float  # seconds since the epoch; for ages, never for leases


class Database(Protocol):
    """Runs ledger transactions. Cancellation: one that has begun is finished, and its result lost."""

    async def transact(self, work: Callable[[Transaction], T]) -> T:
        """`work` in one durable transaction: committed when this returns, undone when it raises."""
        ...

    async def aclose(self) -> None: ...


def boot_clock() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class SqliteDatabase:
    """One file in WAL mode with `synchronous=FULL`, one thread; other processes of the host may share it."""

    def __init__(
        self, path: Path, *, clock: Callable[[], float] = boot_clock, wall: Callable[[], float] = time.time
    ) -> None:
        self._path = path
        self._clock = clock
        self._wall = wall
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="cache-ledger")
        self._engine: Engine | None = None

    async def transact(self, work: Callable[[Transaction], T]) -> T:
        future = asyncio.get_running_loop().run_in_executor(self._thread, self._run, work)
        return await asyncio.shield(future)

    def _run(self, work: Callable[[Transaction], T]) -> T:
        try:
            if self._engine is None:
                self._engine = self._open()
            with self._engine.begin() as connection:
                return work(Transaction(connection, self._clock(), self._wall()))
        except DBAPIError as error:
            raise DeviceFault(
                f"the cache ledger {self._path} failed: {error.orig}; check the disk and the file",
                ledger=str(self._path),
            ) from error

    def _open(self) -> Engine:
        engine = create_engine(
            f"sqlite:///{self._path}",
            poolclass=StaticPool,
            connect_args={"timeout": BUSY_TIMEOUT_S, "check_same_thread": False},
        )

        @event.listens_for(engine, "connect")
        def _connected(connection: sqlite3.Connection, record: Any) -> None:
            connection.isolation_level = None  # transactions are ours to begin
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
                connection.execute(f"PRAGMA {pragma}")

        @event.listens_for(engine, "begin")
        def _begun(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

        return engine

    async def aclose(self) -> None:
        """Waits for what runs, and closes the file. Idempotent."""
        await asyncio.to_thread(self._thread.shutdown)
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None


class PostgresDatabase:
    """One database for all hosts that share the pool."""

    def __init__(self, url: str, *, wall: Callable[[], float] = time.time) -> None:
        """`url`: `postgresql+asyncpg://...`; the password, if any, is never shown."""
        self._engine = create_async_engine(url, pool_size=4, max_overflow=4, pool_pre_ping=True)
        self._wall = wall

    async def transact(self, work: Callable[[Transaction], T]) -> T:
        return await asyncio.shield(asyncio.ensure_future(self._run(work)))

    async def _run(self, work: Callable[[Transaction], T]) -> T:
        try:
            async with self._engine.begin() as connection:
                return await connection.run_sync(self._call, work)
        except (DBAPIError, OSError) as error:
            detail = getattr(error, "orig", error)
            raise Unavailable(f"the cache ledger's database did not answer: {detail}") from None

    def _call(self, connection: Connection, work: Callable[[Transaction], T]) -> T:
        now = connection.execute(text("SELECT extract(epoch FROM clock_timestamp())")).scalar_one()
        return work(Transaction(connection, float(now), self._wall()))

    async def aclose(self) -> None:
        await self._engine.dispose()
