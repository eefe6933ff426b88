"""Threads for blocking calls that may never return: a call that passes its deadline is left behind with its thread.

They are daemons, so that a dead mount does not keep the process from ending either. There are at most `limit` of them, the
hanging ones included: when all hang, the next calls find none and fail by their deadline as well.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from stores.errors import StoreError

T = TypeVar("T")
STILL_S = 2.0
"""How often a call that goes on is asked after."""


@dataclass(slots=True, eq=False)
class _Job:
    call: Callable[[], Any]
    future: Future[Any] = field(default_factory=Future)
    begun: float | None = None  # time.monotonic()


class Touches:
    """Threads with a common name, started when first needed. `late` makes the error of a call that was left behind."""

    def __init__(self, name: str, limit: int, *, late: Callable[[str], StoreError]) -> None:
        self._name = name
        self._limit = limit
        self._error = late
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._open: set[_Job] = set()
        self._threads: list[threading.Thread] = []
        self._late: set[_Job] = set()

    @property
    def hanging(self) -> int:
        """Calls that were given up and still run."""
        self._late = {job for job in self._late if not job.future.done()}
        return len(self._late)

    async def run(
        self, call: Callable[[], T], *, deadline_s: float, still: Callable[[], Awaitable[None]] | None = None
    ) -> T:
        """What `call` returns or raises; the error of `late` when it takes longer than that, or finds no thread for so long.

        `still` is called every `STILL_S` while it runs: when that raises a `StoreError`, the call is left behind with it.
        When cancelled: a call that has not begun never will; a running one is waited for until its deadline.
        """
        job = _Job(call)
        self._open.add(job)
        job.future.add_done_callback(lambda _: self._open.discard(job))
        if len(self._open) > len(self._threads) < self._limit:
            thread = threading.Thread(target=self._serve, name=f"{self._name}-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._jobs.put(job)
        ended = asyncio.wrap_future(job.future)
        cancelled: asyncio.CancelledError | None = None
        trouble: StoreError | None = None
        asked = time.monotonic()
        while not ended.done():
            left = (job.begun or asked) + deadline_s - time.monotonic()
            if left <= 0 or (cancelled is not None and job.future.cancel()):
                break
            try:
                await asyncio.wait([ended], timeout=left if still is None else min(left, STILL_S))
                if still is not None and not ended.done():
                    await still()
            except asyncio.CancelledError as error:
                cancelled = error
            except StoreError as error:
                trouble = error
                break
        if not ended.done() and not job.future.cancel():
            self._late.add(job)
        if cancelled is not None:
            _forget(ended)
            raise cancelled
        if not ended.done():
            _forget(ended)
            raise trouble or self._error(f"{self._name}: a call did not end within {deadline_s:g} s")
        result: T = ended.result()
        return result

    def close(self) -> None:
        """Ends the threads that do not hang, when they are done; waits for none."""
        for _ in self._threads:
            self._jobs.put(None)

    def _serve(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not job.future.set_running_or_notify_cancel():
                continue
            job.begun = time.monotonic()
            try:
                result = job.call()
            except BaseException as error:  # noqa: BLE001 - whoever asked gets it
                job.future.set_exception(error)
            else:
                job.future.set_result(result)
            del job


def _forget(ended: asyncio.Future[Any]) -> None:
    """The outcome interests nobody any more; asyncio wants it looked at."""
    if ended.done():
        if not ended.cancelled():
            ended.exception()
    else:
        ended.cancel()
