"""Tasks and sessions: what a pool knows about those who use it, and when it forgets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any

from tests.doubles.xapi.database import Database
from tests.doubles.xapi.errors import Failure
from tests.doubles.xapi.rpc import result_text
from tests.doubles.xapi.schema import NULL, Moment

KEEP_COMPLETED_S = 65 * 60
KEEP_PENDING_S = 24 * 3600
MOST_TASKS = 200
IDLE_S = 24 * 3600
MOST_SESSIONS = 500
PENDING = "pending"


class Clock:
    """Real time and what tests have added to it."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def now(self) -> float:
        return time.time() + self.ahead

    def moment(self) -> Moment:
        return Moment(datetime.fromtimestamp(self.now(), UTC).strftime("%Y%m%dT%H:%M:%SZ"))


def seconds_of(moment: str) -> float:
    return datetime.strptime(moment, "%Y%m%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()


class Tasks:
    """Ends that come too late, for a task that is gone or has ended, change nothing: so it is in XAPI."""

    def __init__(self, db: Database, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._running: dict[str, asyncio.Task[None]] = {}
        self._seen: dict[str, float] = {}

    def create(self, label: str, description: str = "", *, host: str = NULL, subtask_of: str = NULL) -> str:
        return self._db.add(
            "task",
            name_label=label,
            name_description=description,
            created=self._clock.moment(),
            resident_on=host,
            subtask_of=subtask_of,
        )

    def is_pending(self, ref: str) -> bool:
        return self._db.has("task", ref) and self._db.field("task", ref, "status") == PENDING

    def progress(self, ref: str, value: float) -> None:
        if self.is_pending(ref):
            self._db.change("task", ref, progress=round(value, 3))

    def succeed(self, ref: str, value: Any = "") -> None:
        self._end(ref, status="success", result=result_text(value))

    def fail(self, ref: str, failure: Failure) -> None:
        status = "cancelled" if failure.code == "TASK_CANCELLED" else "failure"
        self._end(ref, status=status, error_info=failure.description)

    def _end(self, ref: str, **values: Any) -> None:
        if self.is_pending(ref):
            self._db.change("task", ref, progress=1.0, finished=self._clock.moment(), allowed_operations=[], **values)

    def run(self, ref: str, work: Coroutine[Any, Any, Any]) -> None:
        """An `Async.` call: its outcome becomes the task's."""

        async def run() -> None:
            try:
                self.succeed(ref, await work)
            except Failure as failure:
                self.fail(ref, failure)
            except asyncio.CancelledError:
                self.fail(ref, Failure("TASK_CANCELLED", ref))
                raise
            finally:
                self._running.pop(ref, None)

        self._running[ref] = asyncio.create_task(run(), name=f"xapi {ref}")

    def allow_cancel(self, ref: str) -> None:
        if self.is_pending(ref):
            self._db.change("task", ref, allowed_operations=["cancel"])

    def cancel(self, ref: str) -> None:
        """What `task.cancel` does where it is allowed. Best effort: only what runs in a task of its own takes note."""
        running = self._running.get(ref)
        if running is not None:
            running.cancel()
        else:
            self.fail(ref, Failure("TASK_CANCELLED", ref))

    def destroy(self, ref: str) -> None:
        """A pending task is only marked."""
        if self.is_pending(ref):
            self._db.change("task", ref, current_operations={"task": "destroy"})
        else:
            self._db.remove("task", ref)

    def lose(self, ref: str) -> None:
        """As if it had never been."""
        if self._db.has("task", ref):
            self._db.remove("task", ref)

    def restart(self, host: str | None) -> None:
        """What a restarted XAPI does: unfinished tasks (of one host, or all) are gone, not failed."""
        for ref in self._db.refs("task"):
            if self.is_pending(ref) and host in (None, self._db.field("task", ref, "resident_on")):
                running = self._running.get(ref)
                self.lose(ref)
                if running is not None:
                    running.cancel()

    def collect(self) -> None:
        """One pass of the garbage collector."""
        seen, self._seen = self._seen, {}
        completed = []
        for ref in self._db.refs("task"):
            task = self._db.get("task", ref)
            if task["status"] != PENDING:
                if self._clock.now() - seconds_of(task["finished"]) > KEEP_COMPLETED_S:
                    self._db.remove("task", ref)
                else:
                    completed.append((task["finished"], ref))
                continue
            self._seen[ref] = task["progress"]
            old = self._clock.now() - seconds_of(task["created"]) > KEEP_PENDING_S
            if old and seen.get(ref) == task["progress"]:
                self._db.remove("task", ref)
        too_many = max(0, len(self._db.refs("task")) - MOST_TASKS)
        for _, ref in sorted(completed)[:too_many]:
            self._db.remove("task", ref)

    async def close(self) -> None:
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


class Sessions:
    """Who is logged in. The oldest are dropped where one originator or user has too many."""

    def __init__(self, db: Database, clock: Clock, user: str, password: str) -> None:
        self._db = db
        self._clock = clock
        self._user = user
        self._password = password

    def login(self, user: str, password: str, originator: str, host: str) -> str:
        self.authenticate(user, password)
        for field, value in (("originator", originator), ("auth_user_name", user)):
            held = self._db.find("session", **{field: value})
            for ref in held[: max(0, len(held) - MOST_SESSIONS + 1)]:
                self._db.remove("session", ref)
        return self._db.add(
            "session",
            this_host=host,
            originator=originator,
            auth_user_name=user,
            last_active=self._clock.moment(),
        )

    def authenticate(self, user: str, password: str) -> None:
        if (user, password) != (self._user, self._password):
            raise Failure("SESSION_AUTHENTICATION_FAILED", user, "Authentication failure")

    def use(self, ref: str) -> None:
        if not self._db.has("session", ref):
            raise Failure("SESSION_INVALID", ref)
        self._db.change("session", ref, last_active=self._clock.moment())

    def drop(self, ref: str) -> None:
        if self._db.has("session", ref):
            self._db.remove("session", ref)

    def drop_all(self) -> None:
        for ref in self._db.refs("session"):
            self._db.remove("session", ref)

    def collect(self) -> None:
        for ref in self._db.refs("session"):
            if self._clock.now() - seconds_of(self._db.field("session", ref, "last_active")) > IDLE_S:
                self._db.remove("session", ref)
