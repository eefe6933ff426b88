"""One flight for each object that is wanted at the same time: the first one starts it, all others of the process join it.

A flight is a task of its own, which belongs to no request: whoever leaves takes nothing with him. When the last one left, the
flight is cancelled and cleans up. What it brought is held for as long as somebody who joined it stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from enum import StrEnum
from typing import Generic, TypeVar

from stores.errors import Unavailable
from stores.transfer.ranges import Ranges
from stores.uninterrupted import uninterrupted

T = TypeVar("T")  # what a flight brings
C = TypeVar("C")  # where it can be read meanwhile


class Stage(StrEnum):
    """What a flight is at."""

    LOOKING = "looking"  # whether a pool has it
    WAITING = "waiting"  # for room in a pool
    FOLLOWING = "following"  # another process fetches it
    FILLING = "filling"
    LANDED = "landed"


class Flight(Generic[C, T]):
    """What all who wait for one object see of it. `key` names the object in the cache."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.stage = Stage.LOOKING
        self.fetched = False  # whether it has to be fetched, by whomever
        self.deadline = 0.0  # until when somebody would wait for room; of the loop's clock
        self.copy: C | None = None  # what arrives
        self.arrived = Ranges()  # which parts of that are there
        self.size: int | None = None  # of the object, once it is known
        self.aboard = 0
        self.leader_stays = True
        self._outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._changed = asyncio.Event()

    @property
    def landed(self) -> T | None:
        """What it brought, once it has."""
        done = self._outcome.done() and not self._outcome.cancelled() and self._outcome.exception() is None
        return self._outcome.result() if done else None

    @property
    def over(self) -> bool:
        """Whether it has landed or failed."""
        return self._outcome.done()

    def enter(self, stage: Stage) -> None:
        self.stage = stage
        self.changed()

    def begin(self, copy: C, arrived: Ranges, size: int | None) -> None:
        """The object arrives there, where some parts are already."""
        self.copy, self.arrived, self.size = copy, arrived, size
        self.changed()

    def add(self, start: int, end: int) -> None:
        """The copy holds these bytes from now on."""
        self.arrived.add(start, end)
        self.changed()

    def changed(self) -> None:
        """Wakes everybody who waits in `change`."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def change(self, timeout_s: float | None = None) -> None:
        """Returns after the next change, or after `timeout_s` seconds. What is looked at before this is called, without
        waiting in between, is not missed."""
        if not self.over:
            changed = self._changed
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await changed.wait()

    def result(self) -> T:
        """Of a flight that is over: what it brought, or raises why it failed."""
        return self._outcome.result()

    def land(self, brought: T) -> None:
        self._outcome.set_result(brought)
        self.enter(Stage.LANDED)

    def fail(self, error: BaseException) -> None:
        self._outcome.set_exception(error)
        self._outcome.exception()  # looked at: nobody may be left to do so
        self.changed()


Journey = Callable[[Flight[C, T]], AbstractAsyncContextManager[T]]
"""How a flight goes: entering brings the object, leaving gives it back. Runs in the flight's own task."""


class Flights(Generic[C, T]):
    """All flights of the process, by the object's key."""

    def __init__(self) -> None:
        self._flights: dict[str, Flight[C, T]] = {}
        self._tasks: dict[Flight[C, T], asyncio.Task[None]] = {}

    @asynccontextmanager
    async def joined(
        self, key: str, journey: Journey[C, T], *, deadline: float
    ) -> AsyncIterator[tuple[Flight[C, T], bool]]:
        """The flight of `key`, and whether it was started for this call. `deadline`: until when the caller would wait for
        room, of the loop's clock. When the context ends and nobody else is aboard, the flight is over and has cleaned up."""
        flight = self._flights.get(key)
        leads = flight is None
        if flight is None:
            flight = self._flights[key] = Flight(key)
            self._tasks[flight] = asyncio.create_task(self._fly(flight, journey), name=f"cache-{key[:12]}")
        flight.deadline = max(flight.deadline, deadline)
        flight.aboard += 1
        try:
            yield flight, leads
        finally:
            flight.aboard -= 1
            flight.leader_stays = flight.leader_stays and not leads
            if not flight.aboard:
                await uninterrupted(self._end(flight))

    def under_way(self) -> list[Flight[C, T]]:
        """Flights that have neither landed nor failed."""
        return list(self._flights.values())

    async def aclose(self) -> None:
        """Ends all flights."""
        for flight in list(self._tasks):
            await self._end(flight)

    async def _fly(self, flight: Flight[C, T], journey: Journey[C, T]) -> None:
        try:
            async with journey(flight) as brought:
                self._forget(flight)
                flight.land(brought)
                await asyncio.Event().wait()  # until the last one aboard has left
        except BaseException as error:
            self._forget(flight)
            if flight.landed is not None:
                raise
            stopped = isinstance(error, asyncio.CancelledError)
            flight.fail(Unavailable("the cache is being closed") if stopped else error)

    async def _end(self, flight: Flight[C, T]) -> None:
        """Also for one that failed: its task is over then, and its error went to those aboard."""
        self._forget(flight)
        task = self._tasks.pop(flight, None)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.result()

    def _forget(self, flight: Flight[C, T]) -> None:
        """Whoever comes from now on starts another one."""
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
