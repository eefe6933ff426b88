"""Sources read in order, ahead of whoever consumes them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from stores.contract import ByteStream, RangeReader
from stores.transfer.buffers import BufferPool
from stores.transfer.pieces import Piece, windows, zero_views


class ReadAhead(ByteStream):
    """`reader` as a stream: up to `width` pieces are read at once, and handed out in order.

    Closing the iterator (`contextlib.aclosing`) or cancelling its task ends the reads and gives the buffers back.
    """

    def __init__(self, buffers: BufferPool, reader: RangeReader, *, width: int) -> None:
        self.info = reader.info
        self._buffers = buffers
        self._reader = reader
        self._width = width

    def __aiter__(self) -> AsyncGenerator[memoryview, None]:
        return self.pieces()

    async def pieces(self) -> AsyncGenerator[memoryview, None]:
        async with aclosing(self.placed()) as placed:
            async for piece, data in placed:
                if data is None:
                    for view in zero_views(piece.length):
                        yield view
                else:
                    yield data

    async def placed(self) -> AsyncGenerator[tuple[Piece, memoryview | None], None]:
        """Each piece and its bytes, None for a hole. The bytes are valid until the next is asked for."""
        ahead: deque[tuple[Piece, asyncio.Task[memoryview] | None]] = deque()
        try:
            async with aclosing(_each(self._reader)) as plan:
                more = True
                while more or ahead:
                    while more and len(ahead) < self._width:
                        piece = await anext(plan, None)
                        if piece is None:
                            more = False
                        else:
                            ahead.append((piece, None if piece.zero else asyncio.create_task(self._read(piece))))
                    if not ahead:
                        break
                    piece, read = ahead[0]
                    if read is None:
                        yield piece, None
                        ahead.popleft()
                        continue
                    buffer = await read
                    yield piece, buffer[: piece.length]
                    ahead.popleft()
                    self._buffers.release(self, buffer)
        finally:
            reads = [read for _, read in ahead if read is not None]
            for read in reads:
                read.cancel()
            for outcome in await asyncio.gather(*reads, return_exceptions=True):
                if isinstance(outcome, memoryview):
                    self._buffers.release(self, outcome)

    async def _read(self, piece: Piece) -> memoryview:
        """A buffer, taken from the pool, that holds `piece`."""
        buffer = await self._buffers.acquire(self)
        try:
            await self._reader.read_into(piece.offset, buffer[: piece.length])
        except BaseException:
            self._buffers.release(self, buffer)
            raise
        return buffer


async def filled_ahead(
    buffers: BufferPool, fill: Callable[[memoryview], Awaitable[int]]
) -> AsyncGenerator[memoryview, None]:
    """What `fill` puts into one buffer after another, up to the first that it does not fill: the next one is filled while the
    last one is used. Each is valid until the next one is asked for. To be closed (`aclosing`)."""
    owner = object()

    async def filled() -> tuple[memoryview, int]:
        buffer = await buffers.acquire(owner)
        try:
            return buffer, await fill(buffer)
        except BaseException:
            buffers.release(owner, buffer)
            raise

    ahead: asyncio.Task[tuple[memoryview, int]] | None = asyncio.create_task(filled(), name="fill ahead")
    try:
        while ahead is not None:
            buffer, count = await ahead
            ahead = asyncio.create_task(filled(), name="fill ahead") if count == len(buffer) else None
            try:
                if count:
                    yield buffer[:count]
            finally:
                buffers.release(owner, buffer)
    finally:
        if ahead is not None:
            ahead.cancel()
            (outcome,) = await asyncio.gather(ahead, return_exceptions=True)
            if not isinstance(outcome, BaseException):
                buffers.release(owner, outcome[0])


async def _each(reader: RangeReader) -> AsyncGenerator[Piece, None]:
    async for window in windows(reader):
        for piece in window:
            yield piece
