"""Forms of reading that readers share: a stream that ends with its context, and one range by the way that is for many."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from stores.contract import BlockingCalls, ByteStream, RangeReader


@asynccontextmanager
async def presented(stream: ByteStream) -> AsyncIterator[ByteStream]:
    """`stream` for a store's `present`: iterable once, and closed with the context even when its reader stopped early, so that
    what feeds it (a descriptor, a connection) can be given back right after."""
    once = _Once(stream)
    try:
        yield once
    finally:
        await once.aclose()


class _Once(ByteStream):
    def __init__(self, stream: ByteStream) -> None:
        self.info = stream.info
        self._stream = stream
        self._pieces: AsyncIterator[memoryview] | None = None

    def __aiter__(self) -> AsyncIterator[memoryview]:
        if self._pieces is not None:
            raise RuntimeError("a byte stream can be iterated only once")
        self._pieces = aiter(self._stream)
        return self._pieces

    async def aclose(self) -> None:
        if isinstance(self._pieces, AsyncGenerator):
            await self._pieces.aclose()


async def read_one(reader: RangeReader, offset: int, buffer: memoryview, threads: BlockingCalls) -> None:
    """`read_into` for readers whose own way to read is `read_each`."""
    once = iter([(offset, buffer)] if len(buffer) else [])
    await reader.read_each(lambda: next(once, None), lambda offset, buffer: None, threads)
