"""Blocking calls in named threads that leave nothing behind when cancelled."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TypeVar

from stores.transfer.fairness import FairShare

T = TypeVar("T")


BULK_NICE = 5
"""Nice value of threads that are busy with bytes. Eight transfers on two processors keep the event loop waiting two to three
times as long without it; the guests on the same host gain from it as well."""


def _stand_back() -> None:
    with suppress(PermissionError):  # a strict system call filter: everything works, the loop only waits longer
        os.nice(BULK_NICE)  # on Linux, of the calling thread alone


class Threads:
    """At most `limit` threads with a common name, started when first needed."""

    def __init__(self, name: str, limit: int, *, bulk: bool = False) -> None:
        """`bulk`: they move or hash bytes without end, and stand back behind the event loop (`BULK_NICE`)."""
        self._executor = ThreadPoolExecutor(limit, thread_name_prefix=name, initializer=_stand_back if bulk else None)

    async def run(self, call: Callable[[], T], *, abort: Callable[[], None] | None = None) -> T:
        """What `call` returns or raises.

        When cancelled: a call that has not begun never will; a running one is told to end by `abort`, where there is such a
        way, and waited for. So nobody works on the caller's data any more once this has raised `CancelledError`.
        """
        future = self._executor.submit(call)
        ended = asyncio.wrap_future(future)
        try:
            return await asyncio.shield(ended)
        except asyncio.CancelledError:
            if not future.cancel():
                if abort is not None:
                    abort()
                await _settle(ended)
            raise

    def close(self) -> None:
        """Ends the threads; waits for what still runs."""
        self._executor.shutdown(wait=True, cancel_futures=True)


class StoppingThreads:
    """`Threads` whose calls wait for one another: to abort one means to let none of them wait any more (`stop`)."""

    def __init__(self, threads: Threads, stop: Callable[[], None]) -> None:
        self._threads = threads
        self._stop = stop

    async def run(self, call: Callable[[], T], *, abort: Callable[[], None] | None = None) -> T:
        def abort_all() -> None:
            self._stop()
            if abort is not None:
                abort()

        return await self._threads.run(call, abort=abort_all)


@contextmanager
def stopping_threads(name: str, count: int, stop: Callable[[], None]) -> Iterator[StoppingThreads]:
    """For calls that wait for one another: in a pool shared with others the one that all wait for might not get a thread."""
    threads = Threads(name, count, bulk=True)
    try:
        yield StoppingThreads(threads, stop)
    finally:
        threads.close()


async def _settle(ended: asyncio.Future[T]) -> None:
    """Waits for the end however often the waiting task is cancelled: its caller raises `CancelledError` anyway."""
    while not ended.done():
        try:
            await asyncio.wait([ended])
        except asyncio.CancelledError:
            continue
    if not ended.cancelled():
        ended.exception()  # the outcome of a cancelled call interests nobody; asyncio wants it looked at


class SharedThreads:
    """Threads whose calls may take long (they wait for a network or a disk), shared fairly among owners.

    A slow owner fills its own share only; see `stores.transfer.fairness.may_take`.
    """

    def __init__(self, name: str, limit: int) -> None:
        self._threads = Threads(name, limit, bulk=True)
        self._share = FairShare(limit)

    def of(self, owner: Hashable) -> OwnedThreads:
        """These threads for the calls of `owner`."""
        return OwnedThreads(self._threads, self._share, owner)

    def close(self) -> None:
        """Ends the threads; waits for what still runs."""
        self._threads.close()


class OwnedThreads:
    """`SharedThreads` for the calls of one owner."""

    def __init__(self, threads: Threads, share: FairShare, owner: Hashable) -> None:
        self._threads = threads
        self._share = share
        self._owner = owner

    async def run(self, call: Callable[[], T], *, abort: Callable[[], None] | None = None) -> T:
        """As `Threads.run`, after waiting for a thread that the owner may have."""
        await self._share.acquire(self._owner)
        try:
            return await self._threads.run(call, abort=abort)
        finally:
            self._share.release(self._owner)
