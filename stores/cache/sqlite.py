"""A ledger in one file beside the entries: all processes of one host may share it.

Transactions that wait at the same moment share one commit, and so one fsync: each runs in a savepoint of its own, so that one
that fails undoes itself alone.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from stores.cache.database import LedgerDamaged, Transaction
from stores.cache.schema import migrate
from stores.errors import DeviceFault, NoSpace, StoreError, Unavailable

T = TypeVar("T")
BUSY_TIMEOUT_S = 30.0  # another process of this host holds the write lock: its transactions take milliseconds
_LOCK = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
BATCH = 64  # transactions in one commit: the last of them waits for all
SUFFIXES = ("", "-wal", "-shm", "-journal", "-next", "-turn")  # of the files that belong to a ledger
CACHE_KIB = 16 * 1024  # pages kept in memory: the paths to a million entries' rows
_START_ANEW = (
    "stop the agent, save what was staged and is in no store yet (objects/*/*.staged.*), remove the pool's directory"
)
TYPED: dict[int, tuple[type[StoreError], str]] = {  # https://www.sqlite.org/rescode.html
    sqlite3.SQLITE_BUSY: (Unavailable, "another process holds it for too long; try again"),
    sqlite3.SQLITE_FULL: (NoSpace, "make room on its file system"),
    sqlite3.SQLITE_CORRUPT: (LedgerDamaged, _START_ANEW),
    sqlite3.SQLITE_NOTADB: (LedgerDamaged, _START_ANEW),
}


def boot_clock() -> float:
    """Seconds since the host booted, the time it slept included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(slots=True)
class _Job:
    """One transaction on its way through the thread."""

    work: Callable[[Transaction], Any]
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any] = field(init=False)
    result: Any = None
    failure: BaseException | None = None

    def __post_init__(self) -> None:
        self.future = self.loop.create_future()

    def report(self) -> None:
        with suppress(RuntimeError):  # its loop is closed: nobody is left to be told
            self.loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        """In the loop. Nobody waits any more for one that was cancelled."""
        if self.future.done():
            return
        if self.failure is not None:
            self.future.set_exception(self.failure)
        else:
            self.future.set_result(self.result)


class _End:
    """After all other jobs."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.reached = asyncio.Event()
        self._loop = loop

    def reach(self) -> None:
        with suppress(RuntimeError):  # its loop is closed: nobody is left to be told
            self._loop.call_soon_threadsafe(self.reached.set)


class SqliteDatabase:
    """A `Database` on one file in WAL mode with `synchronous=FULL`, in one thread.

    The thread is a daemon: one that hangs in a dead mount does not keep the process from ending.
    """

    def __init__(
        self, path: Path, *, clock: Callable[[], float] = boot_clock, wall: Callable[[], float] = time.time
    ) -> None:
        self._path = path
        self._clock = clock
        self._wall = wall
        self._jobs: queue.SimpleQueue[_Job | _End] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._connection: Connection | None = None
        self._locks: list[int] | None = None

    async def transact(self, work: Callable[[Transaction], T]) -> T:
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="cache-ledger", daemon=True)
            self._thread.start()
        job = _Job(work, asyncio.get_running_loop())
        self._jobs.put(job)
        result: T = await job.future
        return result

    async def aclose(self) -> None:
        if self._thread is not None:
            self._thread = None
            end = _End(asyncio.get_running_loop())
            self._jobs.put(end)
            await end.reached.wait()

    # ------------------------------------------------------------------------------------------ in the thread

    def _serve(self) -> None:
        end: _End | None = None
        while end is None:
            batch: list[_Job] = []
            while end is None and (not batch or (len(batch) < BATCH and not self._jobs.empty())):
                job = self._jobs.get()
                if isinstance(job, _End):
                    end = job
                elif not job.future.cancelled():
                    batch.append(job)
            if batch:
                self._run(batch)
            for job in batch:
                job.report()
        self._disconnect()
        end.reach()

    def _run(self, batch: list[_Job]) -> None:
        """All in one commit. What ends that ends them all."""
        try:
            with self._turn():
                connection = self._connect()
                with connection.begin():
                    for job in batch:
                        self._run_one(connection, job)
        except (DBAPIError, sqlite3.Error, OSError) as error:
            failure = self._typed(error)
            self._disconnect()
        except StoreError as error:
            failure = error
            self._disconnect()
        else:
            return
        for job in batch:
            job.failure = failure

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Processes take turns. SQLite alone lets them sleep and try again, and who is unlucky waits for seconds.

        There are two locks, so that who has just had a turn cannot be quicker than the one who waits for it. The kernel frees
        them when a process dies.
        """
        if self._locks is None:
            self._locks = [os.open(f"{self._path}-{name}", _LOCK, 0o600) for name in ("next", "turn")]
        following, turn = self._locks
        fcntl.flock(following, fcntl.LOCK_EX)
        try:
            fcntl.flock(turn, fcntl.LOCK_EX)
        finally:
            fcntl.flock(following, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(turn, fcntl.LOCK_UN)

    def _run_one(self, connection: Connection, job: _Job) -> None:
        connection.exec_driver_sql("SAVEPOINT one")
        try:
            job.result = job.work(Transaction(connection, self._clock(), self._wall()))
        except Exception as error:  # whoever asked gets it
            if not _in_transaction(connection):
                raise  # SQLite has undone everything by itself, as it does for a full disk
            connection.exec_driver_sql("ROLLBACK TO one")
            job.failure = self._typed(error) if isinstance(error, DBAPIError) else error
        connection.exec_driver_sql("RELEASE one")

    def _typed(self, error: DBAPIError | sqlite3.Error | OSError) -> StoreError:
        original = error.orig if isinstance(error, DBAPIError) else error
        code = getattr(original, "sqlite_errorcode", 0) & 0xFF
        kind, advice = TYPED.get(code, (DeviceFault, "check the disk and the file"))
        failure = kind(f"the cache ledger {self._path} failed: {original}; {advice}", ledger=str(self._path))
        failure.__cause__ = error
        return failure

    def _connect(self) -> Connection:
        if self._connection is not None:
            return self._connection
        engine = create_engine(
            f"sqlite:///{self._path}", poolclass=StaticPool, connect_args={"timeout": BUSY_TIMEOUT_S}
        )

        @event.listens_for(engine, "connect")
        def _connected(connection: sqlite3.Connection, record: Any) -> None:
            connection.isolation_level = None  # transactions are ours to begin
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"cache_size=-{CACHE_KIB}"):
                connection.execute(f"PRAGMA {pragma}")

        @event.listens_for(engine, "begin")
        def _begun(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

        connection = engine.connect()
        try:
            with connection.begin():
                migrate(connection)
        except BaseException:
            connection.close()
            engine.dispose()
            raise
        self._connection = connection
        return connection

    def _disconnect(self) -> None:
        """The next transaction opens the file again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(DBAPIError):  # a connection that failed may fail to roll back too; it is closed all the same
                connection.close()
            connection.engine.dispose()
        locks, self._locks = self._locks, None
        for lock in locks or ():
            os.close(lock)


def _in_transaction(connection: Connection) -> bool:
    raw = connection.connection.dbapi_connection
    return raw is not None and bool(raw.in_transaction)
