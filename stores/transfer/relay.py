"""All of a range reader into a stream, in memory of the stream's: nothing is copied, and nothing held twice.

several at once | take room, read
in order        | digest, hand over
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from itertools import groupby

from stores.contract import BlockingCalls, MiB, PendingStream, Progress, RangeReader
from stores.transfer.digests import Digester
from stores.transfer.groups import first_failure
from stores.transfer.pieces import ZEROES, windows

STEP = 5 * MiB // 2
"""Most that is read and digested at once: each takes the event loop's time and two changes of threads, which in smaller ones
is a tenth of all work. Two are a part of an upload, so that one is read while the other is digested."""


class Relay:
    """`width` pieces are read at once, as far as the stream has room for them, and one more is digested meanwhile."""

    def __init__(
        self, source: RangeReader, pending: PendingStream, digester: Digester, threads: BlockingCalls, *, width: int
    ) -> None:
        """`threads`: for digests."""
        self._source = source
        self._pending = pending
        self._digester = digester
        self._threads = threads
        self._turns = asyncio.Semaphore(width + 1)
        self._reads: asyncio.Queue[tuple[memoryview, asyncio.Task[None]] | None] = asyncio.Queue()

    async def run(self, progress: Progress) -> None:
        """Raises what source and stream raise. Once it has ended, cancelled or not, nobody touches the stream's memory."""
        with first_failure():
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read_ahead(group), name="read ahead")
                while (begun := await self._reads.get()) is not None:
                    room, read = begun
                    await read
                    await self._threads.run(partial(self._digester.update, room))
                    await self._pending.filled(room)
                    self._turns.release()
                    progress.advance(len(room))

    async def _read_ahead(self, group: asyncio.TaskGroup) -> None:
        async with aclosing(_cut(self._source)) as cuts:
            async for offset, end, zero in cuts:
                while offset < end:
                    await self._turns.acquire()
                    room = await self._pending.room(min(len(ZEROES) if zero else STEP, end - offset))
                    read = group.create_task(self._fill(offset, room, zero=zero), name="read")
                    self._reads.put_nowait((room, read))
                    offset += len(room)
        self._reads.put_nowait(None)

    async def _fill(self, offset: int, room: memoryview, *, zero: bool) -> None:
        if zero:
            room[:] = ZEROES[: len(room)]
        else:
            await self._source.read_into(offset, room)


async def _cut(source: RangeReader) -> AsyncGenerator[tuple[int, int, bool], None]:
    """Start and end of each run of data or of zeroes, in order, and which of the two it is."""
    async for window in windows(source):
        for zero, pieces in groupby(window, key=lambda piece: piece.zero):
            first, *others = pieces
            last = others[-1] if others else first
            yield first.offset, last.offset + last.length, zero
