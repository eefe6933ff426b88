"""The journal's SQLite file: its schema, and each statement that it answers. Blocking; for the journal's thread only.

Writes take many rows at a time, as one JSON value and one statement. The sqlite3 module gives the interpreter away around
every single step, and in a busy process getting it back is what costs: a row at a time is many times slower there.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from agent.commands import Answer, State
from agent.failures import JournalUnusable

SCHEMA_VERSION = 1
_APPLICATION_ID = 0x53414A31  # marks the file as ours: "SAJ1"
_PRUNE_AT_ONCE = 1000  # rows, so that pruning never holds up a commit for long

_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE key (key BLOB NOT NULL);
CREATE TABLE commands (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    command TEXT NOT NULL,      -- its name
    request TEXT NOT NULL,      -- JSON, secrets masked
    fingerprint TEXT NOT NULL,  -- keyed digest of the request, secrets included
    accepted_at REAL NOT NULL,
    started_at REAL,
    finished_at REAL,
    state TEXT NOT NULL,
    answer TEXT                 -- JSON, once finished
);
CREATE INDEX unfinished ON commands (seq) WHERE finished_at IS NULL;
CREATE INDEX finished ON commands (finished_at) WHERE finished_at IS NOT NULL;
PRAGMA user_version = {SCHEMA_VERSION};
PRAGMA application_id = {_APPLICATION_ID};
"""
_ENTRY = "SELECT id, command, request, fingerprint, accepted_at, started_at, state, answer FROM commands "
_KNOWN = f"{_ENTRY} WHERE id IN (SELECT value FROM json_each(?))"  # noqa: S608
_ACCEPT = """
INSERT INTO commands (id, command, request, fingerprint, accepted_at, started_at, state)
SELECT value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4, value ->> 5, value ->> 6 FROM json_each(?)
"""
_BEGIN = """
UPDATE commands SET state = ?, started_at = begun.value ->> 1 FROM json_each(?) AS begun
WHERE commands.id = begun.value ->> 0 AND commands.finished_at IS NULL
"""
_FINISH = """
UPDATE commands SET state = ended.value ->> 1, started_at = ended.value ->> 2, finished_at = ended.value ->> 3,
    answer = ended.value ->> 4 FROM json_each(?) AS ended
WHERE commands.id = ended.value ->> 0 AND commands.finished_at IS NULL
"""
_REOPEN = """
UPDATE commands SET state = ?, accepted_at = reopened.value ->> 1, started_at = NULL, finished_at = NULL, answer = NULL
FROM json_each(?) AS reopened WHERE commands.id = reopened.value ->> 0 AND commands.finished_at IS NOT NULL
"""
_PRUNE_BY_AGE = """
DELETE FROM commands WHERE seq IN
(SELECT seq FROM commands WHERE finished_at IS NOT NULL AND finished_at < ? ORDER BY finished_at LIMIT ?)
"""
_PRUNE_BY_COUNT = """
DELETE FROM commands WHERE finished_at IS NOT NULL AND seq IN
(SELECT seq FROM commands WHERE seq <= (SELECT max(seq) FROM commands) - ? ORDER BY seq LIMIT ?)
"""


class Entry(NamedTuple):
    """One command as the journal has it."""

    id: str
    command: str
    request: str  # JSON, secrets masked
    fingerprint: str
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


class Reopened(NamedTuple):
    """A finished command that is accepted once more."""

    id: str
    accepted_at: float


class Begun(NamedTuple):
    id: str
    started_at: float


class Ended(NamedTuple):
    """A final answer, ready to be written."""

    id: str
    state: State
    started_at: float | None
    finished_at: float | None
    answer: str


class JournalFile:
    """Opens the file, makes it if it is not there, and checks it. `JournalUnusable` or sqlite3.Error if that fails."""

    def __init__(self, path: Path) -> None:
        # Made by us first, since SQLite would make it with the umask's permissions; its -wal and -shm copy them.
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        self._db = sqlite3.connect(path, isolation_level=None)
        try:
            self._prepare(path)
            (self.key,) = self._db.execute("SELECT key FROM key").fetchone()
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it, on disk when the context ends, or nothing."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # some errors have rolled it back already
                self._db.execute("ROLLBACK")
            raise

    def accept(self, entries: Sequence[Entry]) -> Sequence[Entry | None]:
        """Add those whose id is new. For each, the entry that had its id before, or None."""
        ids = json.dumps([entry.id for entry in entries])
        rows = self._db.execute(_KNOWN, (ids,))
        known = {entry.id: entry for entry in map(_entry, rows)}
        before: list[Entry | None] = []
        new: list[Entry] = []
        for entry in entries:
            before.append(known.get(entry.id))
            if entry.id not in known:
                known[entry.id] = entry
                new.append(entry)
        self._db.execute(_ACCEPT, (json.dumps(new),))
        return before

    def reopen(self, reopened: Sequence[Reopened]) -> None:
        self._db.execute(_REOPEN, (State.ACCEPTED.value, json.dumps(reopened)))

    def begin(self, begun: Sequence[Begun]) -> None:
        self._db.execute(_BEGIN, (State.RUNNING.value, json.dumps(begun)))

    def finish(self, ended: Sequence[Ended]) -> None:
        """A final answer that is there already stays."""
        self._db.execute(_FINISH, (json.dumps(ended),))

    def find(self, command_id: str) -> Entry | None:
        row = self._db.execute(_ENTRY + "WHERE id = ?", (command_id,)).fetchone()
        return None if row is None else _entry(row)

    def unfinished(self) -> Sequence[Entry]:
        return [_entry(row) for row in self._db.execute(_ENTRY + "WHERE finished_at IS NULL ORDER BY seq")]

    def newest(self, limit: int, state: State | None) -> Sequence[Entry]:
        """Finished ones, the last accepted first."""
        rows = self._db.execute(
            _ENTRY + "WHERE finished_at IS NOT NULL AND (?1 IS NULL OR state = ?1) ORDER BY seq DESC LIMIT ?2",
            (state, limit),
        )
        return [_entry(row) for row in rows]

    def prune(self, *, older_than: float, keep: int) -> None:
        """Forget finished commands that ended before that time, or that are not among the newest so many."""
        self._db.execute(_PRUNE_BY_AGE, (older_than, _PRUNE_AT_ONCE))
        self._db.execute(_PRUNE_BY_COUNT, (keep, _PRUNE_AT_ONCE))

    def _prepare(self, path: Path) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._db.executescript(_SCHEMA)
            self._db.execute("INSERT INTO key (key) VALUES (?)", (secrets.token_bytes(32),))
            self._db.execute("COMMIT")
        elif version != SCHEMA_VERSION:
            raise JournalUnusable(
                f"the journal {path} has schema version {version} and this agent reads {SCHEMA_VERSION}; let the agent that"
                " wrote it finish what it has accepted, then move the file away",
                path=str(path),
            )
        (verdict,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(verdict)


def _entry(row: tuple[Any, ...]) -> Entry:
    command_id, command, request, fingerprint, accepted_at, started_at, state, answer = row
    return Entry(command_id, command, request, fingerprint, accepted_at, started_at, State(state), answer)
