"""The commands' durable memory: what was accepted, what had begun, how it ended.

One file (`agent.journal_file`) and one thread that owns it. Whoever calls meanwhile shares the next transaction: the thread
takes everything that waits, commits once, and answers all. What a method wrote is on disk when its future is done. Methods
only queue their work and hand out a future, so cancelling a waiter takes nothing back.

Secrets are not stored. Whether an id came again with the same content is decided by a keyed digest of the whole command,
secrets included; the key is random and made with the file.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import hmac
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from agent.commands import Answer, State
from agent.failures import JournalLocked, JournalUnusable
from agent.journal_file import Begun, Ended, Entry, JournalFile, Reopened

_PRUNE_EVERY = 256  # accepted commands between two prunings
_LARGEST_BATCH = 4096


@dataclass(frozen=True, slots=True)
class Retention:
    """How long finished commands are remembered: so many seconds, and among the newest so many."""

    age_s: float = 7 * 24 * 3600.0
    count: int = 100_000


_Read: TypeAlias = Callable[[JournalFile], object]


@dataclass(slots=True)
class _Work:
    """A row to write, or something to read, and who waits for it."""

    what: Entry | Reopened | Begun | Ended | _Read
    done: asyncio.Future[Any]


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
        self._key = b""
        self._accepted = 0
        self._usable = False

    async def __aenter__(self) -> Journal:
        """`JournalLocked` if another process has it, `JournalUnusable` if it cannot be read, with what to do about it."""
        self._loop = asyncio.get_running_loop()
        opened: asyncio.Future[bytes] = self._loop.create_future()
        self._thread = threading.Thread(target=self._main, args=(self._loop, opened), name="journal", daemon=True)
        self._thread.start()
        try:
            self._key = await asyncio.shield(opened)
        except BaseException:
            await self.__aexit__()
            raise
        self._usable = True
        return self

    async def __aexit__(self, *_: object) -> None:
        """Ends when everything queued is written. Blocks the loop for that last batch, which nobody awaits."""
        if self._thread is not None:
            self._inbox.put(None)
            thread, self._thread = self._thread, None
            thread.join()
        self._usable = False

    @property
    def usable(self) -> bool:
        """Whether the last attempt to read or write succeeded."""
        return self._usable

    def fingerprint(self, content: bytes) -> str:
        """Keyed digest of a command's content."""
        return hmac.digest(self._key, content, hashlib.sha256).hex()

    def accept(self, entry: Entry) -> asyncio.Future[Entry | None]:
        """Remember a new command. An entry that is there already under this id is given back, and nothing is written."""
        return self._queue(entry)

    def reopen(self, command_id: str, accepted_at: float) -> asyncio.Future[None]:
        """A command that had its final answer is accepted once more, and that answer forgotten."""
        return self._queue(Reopened(command_id, accepted_at))

    def begin(self, command_id: str, started_at: float) -> asyncio.Future[None]:
        """From here on the command may leave something behind."""
        return self._queue(Begun(command_id, started_at))

    def finish(self, answer: Answer) -> asyncio.Future[None]:
        """Remember the final answer. One that is there already stays."""
        return self._queue(Ended(answer.id, answer.state, answer.started_at, answer.finished_at, answer.wire()))

    def find(self, command_id: str) -> asyncio.Future[Entry | None]:
        return self._queue(lambda file: file.find(command_id))

    def unfinished(self) -> asyncio.Future[Sequence[Entry]]:
        """In the order in which they were accepted."""
        return self._queue(lambda file: file.unfinished())

    def newest(self, limit: int, state: State | None = None) -> asyncio.Future[Sequence[Entry]]:
        """Finished commands, the last accepted first."""
        return self._queue(lambda file: file.newest(limit, state))

    # ----------------------------------------------------------------------------------------- on the loop's side

    def _queue(self, what: Entry | Reopened | Begun | Ended | _Read) -> asyncio.Future[Any]:
        if self._loop is None or self._thread is None:
            raise JournalUnusable("the journal is not open", path=str(self._path))
        done = self._loop.create_future()
        self._inbox.put(_Work(what, done))
        return done

    def _settle(self, batch: Sequence[_Work], results: Sequence[object], failure: Exception | None) -> None:
        self._usable = failure is None
        for index, work in enumerate(batch):
            if work.done.done():  # its waiter was cancelled; the work was done all the same
                continue
            if failure is None:
                work.done.set_result(results[index])
            else:
                work.done.set_exception(failure)

    # ---------------------------------------------------------------------------------------- on the thread's side

    def _main(self, loop: asyncio.AbstractEventLoop, opened: asyncio.Future[bytes]) -> None:
        try:
            lock = self._take_lock()
        except Exception as error:  # noqa: BLE001  the opener gets it
            loop.call_soon_threadsafe(_tell, opened, None, self._unusable(error))
            return
        try:
            file = self._open()
        except Exception as error:  # noqa: BLE001  the opener gets it
            os.close(lock)
            loop.call_soon_threadsafe(_tell, opened, None, self._unusable(error))
            return
        loop.call_soon_threadsafe(_tell, opened, file.key, None)
        try:
            while (batch := self._next_batch()) is not None:
                results, failure = self._commit(file, batch)
                loop.call_soon_threadsafe(self._settle, batch, results, failure)
        finally:
            file.close()
            os.close(lock)

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

    def _commit(self, file: JournalFile, batch: Sequence[_Work]) -> tuple[Sequence[object], Exception | None]:
        """Rows are written by kind, in the order of a command's life, and before anything is read."""
        accepts = [work.what for work in batch if isinstance(work.what, Entry)]
        reopens = [work.what for work in batch if isinstance(work.what, Reopened)]
        begins = [work.what for work in batch if isinstance(work.what, Begun)]
        ends = [work.what for work in batch if isinstance(work.what, Ended)]
        before: Sequence[Entry | None] = ()
        try:
            if accepts or reopens or begins or ends:
                with file.transaction():
                    if accepts:
                        before = file.accept(accepts)
                        self._prune_now_and_then(file, len(accepts))
                    if reopens:
                        file.reopen(reopens)
                    if begins:
                        file.begin(begins)
                    if ends:
                        file.finish(ends)
            known = iter(before)
            results: list[object] = []
            for work in batch:
                if isinstance(work.what, Entry):
                    results.append(next(known))
                elif isinstance(work.what, Reopened | Begun | Ended):
                    results.append(None)
                else:
                    results.append(work.what(file))
        except Exception as error:  # noqa: BLE001  everybody in the batch gets it
            return (), self._unusable(error)
        return results, None

    def _prune_now_and_then(self, file: JournalFile, accepted: int) -> None:
        rounds = self._accepted // _PRUNE_EVERY
        self._accepted += accepted
        if self._accepted // _PRUNE_EVERY > rounds:
            self._prune(file)

    def _prune(self, file: JournalFile) -> None:
        file.prune(older_than=self._clock() - self._retention.age_s, keep=self._retention.count)

    def _open(self) -> JournalFile:
        file = JournalFile(self._path)
        try:
            with file.transaction():
                self._prune(file)
        except BaseException:
            file.close()
            raise
        return file

    def _take_lock(self) -> int:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self._directory / "journal.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            if not isinstance(error, BlockingIOError):
                raise
            raise JournalLocked(
                f"the journal in {self._directory} is in use by another agent; give each agent its own state_dir",
                path=str(self._directory),
            ) from error
        return lock

    def _unusable(self, error: Exception) -> Exception:
        """What the caller is told. A fault of our own stays what it is."""
        if not isinstance(error, sqlite3.Error | OSError):
            return error
        return JournalUnusable(
            f"the journal {self._path} cannot be used ({error}), and no command runs without it; check the disk, and if the"
            " file is damaged move it away: commands that it says were running are then no longer accounted for",
            path=str(self._path),
            error=str(error),
        )


def _tell(opened: asyncio.Future[bytes], key: bytes | None, failure: Exception | None) -> None:
    if opened.done():
        return
    if failure is not None:
        opened.set_exception(failure)
    elif key is not None:
        opened.set_result(key)
