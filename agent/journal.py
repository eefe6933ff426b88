"""The commands' durable memory: what was accepted, what had begun, how it ended.

One SQLite file (WAL, `synchronous=FULL`) and one thread that owns it. Whoever calls meanwhile shares the next transaction:
the thread takes everything that waits, commits once, and answers all. What a method wrote is on disk when its future is
done. Methods only queue their work, in order, and hand out a future, so cancelling a waiter takes nothing back.

Secrets are not stored. Whether an id came again with the same content is decided by a keyed digest of the whole command,
secrets included; the key is random, made with the file.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import hmac
import os
import queue
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.commands import Answer, State
from agent.failures import JournalLocked, JournalUnusable

SCHEMA_VERSION = 1
_APPLICATION_ID = 0x53414A31  # marks the file as ours: "SAJ1"
_PRUNE_EVERY = 256  # accepted commands between two prunings
_PRUNE_AT_ONCE = 1000  # rows, so that pruning never holds up a commit for long
_LARGEST_BATCH = 4096

_SCHEMA = """
CREATE TABLE key (key BLOB NOT NULL);
CREATE TABLE commands (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    command TEXT NOT NULL,      -- its name
    request TEXT NOT NULL,      -- JSON, secrets masked
    fingerprint BLOB NOT NULL,
    accepted_at REAL NOT NULL,
    started_at REAL,
    finished_at REAL,
    state TEXT NOT NULL,
    answer TEXT                 -- JSON, once finished
);
CREATE INDEX unfinished ON commands (seq) WHERE finished_at IS NULL;
CREATE INDEX finished ON commands (finished_at) WHERE finished_at IS NOT NULL;
"""
_COLUMNS = "id, command, request, fingerprint, accepted_at, started_at, state, answer"


@dataclass(frozen=True, slots=True)
class Entry:
    """One command as the journal has it."""

    id: str
    command: str
    request: str  # JSON, secrets masked
    fingerprint: bytes
    accepted_at: float
    started_at: float | None = None
    state: State = State.ACCEPTED
    answer: str | None = None  # JSON, once finished

    def told(self) -> Answer:
        """The answer that the entry stands for."""
        if self.answer is not None:
            return Answer.model_validate_json(self.answer)
        return Answer(
            id=self.id,
            command=self.command,
            state=self.state,
            accepted_at=self.accepted_at,
            started_at=self.started_at,
        )


@dataclass(frozen=True, slots=True)
class Retention:
    """How long finished commands are remembered: so many seconds, and among the newest so many."""

    age_s: float = 7 * 24 * 3600.0
    count: int = 100_000


@dataclass(slots=True)
class _Work:
    """Something for the thread to do, and who waits for it."""

    run: Callable[[sqlite3.Connection], Any]
    done: asyncio.Future[Any]
    writes: bool


class Journal:
    """See the module. Every method may raise `JournalUnusable`: then nothing of that call was written. A later call may
    succeed again, when for instance the disk has room again."""

    def __init__(
        self, directory: Path, *, retention: Retention = Retention(), clock: Callable[[], float] = time.time
    ) -> None:
        """Opens nothing. `directory` is made, with mode 0700, if it does not exist."""
        self._directory = directory
        self._path = directory / "journal.sqlite3"
        self._retention = retention
        self._clock = clock
        self._inbox: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock: int | None = None
        self._key = b""
        self._accepted = 0
        self._usable = False

    async def __aenter__(self) -> Journal:
        """`JournalLocked` if another process has it, `JournalUnusable` if it cannot be read, with what to do about it."""
        self._loop = asyncio.get_running_loop()
        opened: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(target=self._main, args=(opened,), name="journal", daemon=True)
        self._thread.start()
        try:
            await asyncio.shield(opened)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Waits for what was queued."""
        if self._thread is not None:
            self._inbox.put(None)
            thread, self._thread = self._thread, None
            # Short: the thread has at most a batch to finish, and no future of it is awaited any more.
            thread.join()

    @property
    def usable(self) -> bool:
        """Whether the last attempt to read or write succeeded."""
        return self._usable

    def fingerprint(self, content: bytes) -> bytes:
        """Keyed digest of a command's content."""
        return hmac.digest(self._key, content, hashlib.sha256)

    def accept(self, entry: Entry) -> asyncio.Future[Entry | None]:
        """Remember a new command. An entry that is there already under this id is given back, and nothing is written."""

        def run(db: sqlite3.Connection) -> Entry | None:
            cursor = db.execute(
                "INSERT INTO commands (id, command, request, fingerprint, accepted_at, state)"
                " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING",
                (entry.id, entry.command, entry.request, entry.fingerprint, entry.accepted_at, entry.state.value),
            )
            if not cursor.rowcount:
                return _select(db, entry.id)
            self._accepted += 1
            if self._accepted % _PRUNE_EVERY == 0:
                self._prune(db)
            return None

        return self._queue(run, writes=True)

    def begin(self, command_id: str, started_at: float) -> asyncio.Future[None]:
        """From here on the command may leave something behind."""

        def run(db: sqlite3.Connection) -> None:
            db.execute(
                "UPDATE commands SET state = ?, started_at = ? WHERE id = ? AND finished_at IS NULL",
                (State.RUNNING.value, started_at, command_id),
            )

        return self._queue(run, writes=True)

    def finish(self, answer: Answer) -> asyncio.Future[None]:
        """Remember the final answer. One that is there already stays."""
        text = answer.wire()

        def run(db: sqlite3.Connection) -> None:
            db.execute(
                "UPDATE commands SET state = ?, started_at = ?, finished_at = ?, answer = ?"
                " WHERE id = ? AND finished_at IS NULL",
                (answer.state.value, answer.started_at, answer.finished_at, text, answer.id),
            )

        return self._queue(run, writes=True)

    def find(self, command_id: str) -> asyncio.Future[Entry | None]:
        return self._queue(lambda db: _select(db, command_id), writes=False)

    def unfinished(self) -> asyncio.Future[Sequence[Entry]]:
        """In the order in which they were accepted."""

        def run(db: sqlite3.Connection) -> Sequence[Entry]:
            rows = db.execute(f"SELECT {_COLUMNS} FROM commands WHERE finished_at IS NULL ORDER BY seq")  # noqa: S608
            return [_entry(row) for row in rows]

        return self._queue(run, writes=False)

    def newest(self, limit: int, state: State | None = None) -> asyncio.Future[Sequence[Entry]]:
        """Finished commands, the last accepted first."""

        def run(db: sqlite3.Connection) -> Sequence[Entry]:
            rows = db.execute(
                f"SELECT {_COLUMNS} FROM commands WHERE finished_at IS NOT NULL"  # noqa: S608
                " AND (?1 IS NULL OR state = ?1) ORDER BY seq DESC LIMIT ?2",
                (state and state.value, limit),
            )
            return [_entry(row) for row in rows]

        return self._queue(run, writes=False)

    # ----------------------------------------------------------------------------------------- on the loop's side

    def _queue(self, run: Callable[[sqlite3.Connection], Any], *, writes: bool) -> asyncio.Future[Any]:
        if self._loop is None or self._thread is None:
            raise JournalUnusable("the journal is not open", path=str(self._path))
        done = self._loop.create_future()
        self._inbox.put(_Work(run, done, writes))
        return done

    def _settle(self, batch: Sequence[_Work], results: Sequence[Any], error: JournalUnusable | None) -> None:
        self._usable = error is None
        for index, work in enumerate(batch):
            if work.done.done():  # its waiter was cancelled; the work was done all the same
                continue
            if error is None:
                work.done.set_result(results[index])
            else:
                work.done.set_exception(error)

    # ---------------------------------------------------------------------------------------- on the thread's side

    def _main(self, opened: asyncio.Future[None]) -> None:
        assert self._loop is not None
        try:
            db = self._open()
        except BaseException as error:  # noqa: BLE001  the opener gets it, whatever it is
            self._loop.call_soon_threadsafe(_fail, opened, error)
            self._release()
            return
        self._usable = True
        self._loop.call_soon_threadsafe(_succeed, opened)
        try:
            while (batch := self._next_batch()) is not None:
                results, failure = self._commit(db, batch)
                self._loop.call_soon_threadsafe(self._settle, batch, results, failure)
        finally:
            db.close()
            self._release()

    def _next_batch(self) -> Sequence[_Work] | None:
        """Everything that waits, as soon as there is something: the time of one commit is what fills the next batch."""
        first = self._inbox.get()
        if first is None:
            return None
        batch = [first]
        while len(batch) < _LARGEST_BATCH:
            try:
                more = self._inbox.get_nowait()
            except queue.Empty:
                break
            if more is None:
                self._inbox.put(None)  # for the next round
                break
            batch.append(more)
        return batch

    def _commit(self, db: sqlite3.Connection, batch: Sequence[_Work]) -> tuple[Sequence[Any], JournalUnusable | None]:
        writes = any(work.writes for work in batch)
        try:
            if not writes:
                return [work.run(db) for work in batch], None
            db.execute("BEGIN IMMEDIATE")
            try:
                results = [work.run(db) for work in batch]
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
        except Exception as error:  # noqa: BLE001  everybody in the batch gets it
            return (), self._unusable(error)
        return results, None

    def _prune(self, db: sqlite3.Connection) -> None:
        db.execute(
            "DELETE FROM commands WHERE seq IN (SELECT seq FROM commands WHERE finished_at IS NOT NULL"
            " AND finished_at < ? ORDER BY finished_at LIMIT ?)",
            (self._clock() - self._retention.age_s, _PRUNE_AT_ONCE),
        )
        db.execute(
            "DELETE FROM commands WHERE seq IN (SELECT seq FROM commands WHERE finished_at IS NOT NULL"
            " AND seq <= (SELECT max(seq) FROM commands) - ? ORDER BY seq LIMIT ?)",
            (self._retention.count, _PRUNE_AT_ONCE),
        )

    def _open(self) -> sqlite3.Connection:
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._take_lock()
            # Made by us first, since SQLite would make it with the umask's permissions; its -wal and -shm copy them.
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            db = sqlite3.connect(self._path, isolation_level=None)
            try:
                self._prepare(db)
            except BaseException:
                db.close()
                raise
        except (sqlite3.Error, OSError) as error:
            raise self._unusable(error) from error
        return db

    def _take_lock(self) -> None:
        self._lock = os.open(self._directory / "journal.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise JournalLocked(
                f"the journal in {self._directory} is in use by another agent; give each agent its own state_dir",
                path=str(self._directory),
            ) from error

    def _release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _prepare(self, db: sqlite3.Connection) -> None:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            db.executescript(
                f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION};"
                f" PRAGMA application_id = {_APPLICATION_ID};"
            )
            db.execute("INSERT INTO key (key) VALUES (?)", (secrets.token_bytes(32),))
            db.execute("COMMIT")
        elif version != SCHEMA_VERSION:
            raise JournalUnusable(
                f"the journal {self._path} has schema version {version}, this agent reads {SCHEMA_VERSION}; run the agent"
                " that wrote it until nothing is unfinished, then move the file away",
                path=str(self._path),
            )
        (verdict,) = db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)
        (self._key,) = db.execute("SELECT key FROM key").fetchone()
        db.execute("BEGIN IMMEDIATE")
        self._prune(db)
        db.execute("COMMIT")

    def _unusable(self, error: Exception) -> JournalUnusable:
        if isinstance(error, JournalUnusable):
            return error
        return JournalUnusable(
            f"the journal {self._path} cannot be used ({error}), and no command runs without it; check the disk, and if the"
            " file is damaged move it away: commands that it says were running are then no longer accounted for",
            path=str(self._path),
            error=str(error),
        )


def _entry(row: tuple[Any, ...]) -> Entry:
    command_id, command, request, fingerprint, accepted_at, started_at, state, answer = row
    return Entry(command_id, command, request, fingerprint, accepted_at, started_at, State(state), answer)


def _select(db: sqlite3.Connection, command_id: str) -> Entry | None:
    row = db.execute(f"SELECT {_COLUMNS} FROM commands WHERE id = ?", (command_id,)).fetchone()  # noqa: S608
    return None if row is None else _entry(row)


def _succeed(opened: asyncio.Future[None]) -> None:
    if not opened.done():
        opened.set_result(None)


def _fail(opened: asyncio.Future[None], error: BaseException) -> None:
    if not opened.done():
        opened.set_exception(error)
