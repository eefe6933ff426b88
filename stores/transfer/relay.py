"""All of a range reader into a stream, in memory of the stream's: nothing is copied, and nothing held twice.

several at once | begin a span, take its rooms, read
in order        | digest, hand over

A span is read by one request, whose answer waits on the connection whenever the stream has no room: how much is asked for at
once and how much memory it takes have nothing to do with each other.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from functools import partial
from itertools import groupby

from stores.contract import BlockingCalls, MiB, PendingStream, Progress, RangeReader
from stores.transfer.digests import Digester
from stores.transfer.groups import first_failure
from stores.transfer.pieces import ZEROES, windows
from stores.transfer.supply import Stopped
from stores.transfer.threads import StoppingThreads, stopping_threads

SPAN = 16 * MiB
"""Most that one request asks for. Rooms are given in order, so that in larger ones fewer would be read at once."""

STEP = 5 * MiB // 2
"""Most that is read and digested at once: each takes the event loop's time and two changes of threads, which in smaller ones
is a tenth of all work. Two are a part of an upload, so that one is read while the other is digested."""

LONG = 4 * SPAN
"""A span while the source is not the slower side. Each request costs a server work of its own (a third of it, with SeaweedFS);
but of so long ones, memory holds hardly more than one, so that they come by one connection after the other."""

JUDGED = 8
"""Rooms after which it is judged which side is the slower one."""


class Relay:
    """`width` spans are read at once, as far as the stream has room for them, and one room more is digested meanwhile."""

    def __init__(
        self, source: RangeReader, pending: PendingStream, digester: Digester, threads: BlockingCalls, *, width: int
    ) -> None:
        """`threads`: for digests."""
        self._source = source
        self._pending = pending
        self._digester = digester
        self._threads = threads
        self._width = width
        self._turns = asyncio.Semaphore(width)
        self._pace = Pace()
        self._rooms: asyncio.Queue[_Room | None] = asyncio.Queue()
        self._spans: set[_Span] = set()

    async def run(self, progress: Progress) -> None:
        """Raises what source and stream raise. Once it has ended, cancelled or not, nobody touches the stream's memory."""
        with stopping_threads("relay", self._width, self._stop) as calls, first_failure():
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read_ahead(group, calls), name="read ahead")
                while (room := await self._rooms.get()) is not None:
                    self._pace.turn(in_time=room.read.is_set())
                    await room.read.wait()
                    if self._digester:
                        await self._threads.run(partial(self._digester.update, room.memory))
                    await self._pending.filled(room.memory)
                    progress.advance(len(room.memory))

    async def _read_ahead(self, group: asyncio.TaskGroup, calls: StoppingThreads) -> None:
        async with aclosing(_cut(self._source, self._pace)) as cuts:
            async for offset, end, zero in cuts:
                if zero:
                    await self._zeroes(end - offset)
                    continue
                await self._turns.acquire()
                span = _Span(offset, end)
                self._spans.add(span)
                group.create_task(self._read(span, calls), name="read")
                while offset < end:
                    room = await self._room(min(STEP, end - offset))
                    span.rooms.put(room)
                    offset += len(room.memory)
        self._rooms.put_nowait(None)

    async def _zeroes(self, length: int) -> None:
        while length:
            room = await self._room(min(len(ZEROES), length))
            room.memory[:] = ZEROES[: len(room.memory)]
            room.read.set()
            length -= len(room.memory)

    async def _room(self, most: int) -> _Room:
        room = _Room(await self._pending.room(most))
        self._rooms.put_nowait(room)
        return room

    async def _read(self, span: _Span, calls: StoppingThreads) -> None:
        await self._source.read_each(span.take, span.put, calls, ahead=span.ahead)
        self._spans.remove(span)
        self._turns.release()

    def _stop(self) -> None:
        for span in self._spans:
            span.rooms.put(None)


class Pace:
    """`span`: how much to ask for at once. More where most rooms are read before their turn; where that is different with one
    connection, it is tried again after twice as many rooms, so that a source that needs several connections has them."""

    def __init__(self) -> None:
        self.span = SPAN
        self._patience = JUDGED
        self._rooms = self._late = 0

    def turn(self, *, in_time: bool) -> None:
        """Of the next room, which was read by then, or not."""
        self._rooms += 1
        self._late += not in_time
        if self._rooms < (self._patience if self.span == SPAN else JUDGED):
            return
        slower = 2 * self._late > self._rooms
        if slower and self.span == LONG:
            self._patience *= 2
        self.span = SPAN if slower else LONG
        self._rooms = self._late = 0


class _Room:
    """A part of the stream's memory, and whether it holds what it should."""

    def __init__(self, memory: memoryview) -> None:
        self.memory = memory
        self.read = asyncio.Event()


class _Span:
    """One reader's way through its rooms: the arguments of `RangeReader.read_each`."""

    def __init__(self, start: int, end: int) -> None:
        self.rooms: queue.SimpleQueue[_Room | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._at = start
        self._end = end
        self._present: _Room | None = None

    def take(self) -> tuple[int, memoryview] | None:
        if self._at == self._end:
            return None
        self._present = self.rooms.get()
        if self._present is None:
            raise Stopped
        offset = self._at
        self._at += len(self._present.memory)
        return offset, self._present.memory

    def put(self, offset: int, buffer: memoryview) -> None:
        assert self._present is not None
        self._loop.call_soon_threadsafe(self._present.read.set)

    def ahead(self) -> Iterator[tuple[int, int]]:
        yield self._at, self._end - self._at


async def _cut(source: RangeReader, pace: Pace) -> AsyncGenerator[tuple[int, int, bool], None]:
    """Start and end of each span of data and of each run of zeroes, in order, and which of the two it is."""
    async for window in windows(source):
        for zero, pieces in groupby(window, key=lambda piece: piece.zero):
            first, *others = pieces
            last = others[-1] if others else first
            start, end = first.offset, last.offset + last.length
            if zero:
                yield start, end, True
            else:
                while start < end:
                    stop = min(start + pace.span, end)
                    yield start, stop, False
                    start = stop
