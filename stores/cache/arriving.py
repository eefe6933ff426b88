"""Reading an object in the cache, whole or while it arrives.

A read waits for its part, and for nothing else. When the cache cannot give it (the fill failed, its pool turned sick, another
copy was begun), the part is read from the store itself, where that has ranges: a broken cache makes reading slow, not fail.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from functools import partial
from types import TracebackType
from typing import Self, cast

from stores.cache.filling import Copy, Landed
from stores.cache.flights import Flight
from stores.contract import ByteStream, ObjectInfo, Presentation, RangeReader
from stores.errors import IntegrityError, StoreError, Unavailable
from stores.os_errors import translate
from stores.transfer.buffers import PIECE, BufferPool

Direct = Callable[[], AbstractAsyncContextManager[Presentation]]
"""The object as a `RangeReader` of its own store."""


class CacheReader(RangeReader):
    """A context: what it opened is closed at its end. `bypassed` is called once, when the store itself is read."""

    def __init__(
        self,
        flight: Flight[Copy, Landed],
        info: ObjectInfo,
        *,
        direct: Direct | None,
        bypassed: Callable[[StoreError], None],
    ) -> None:
        self.info = info
        self._flight = flight
        self._direct = direct
        self._bypassed = bypassed
        self._file: _File | None = None
        self._store: RangeReader | None = None
        self._opening = asyncio.Lock()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
        await self._stack.aclose()

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        size, end = self.info.size, offset + len(buffer)
        if offset < 0 or (size is not None and end > size):
            raise IntegrityError(
                f"{self.info.ref} ends at byte {size}, and bytes up to {end} were asked for", size=size, needed=end
            )
        if not len(buffer):
            return
        store = self._store
        if store is None:
            try:
                await self._read(offset, buffer)
                return
            except StoreError as error:
                store = await self._bypass(error)
        await store.read_into(offset, buffer)

    async def reach(self, offset: int) -> int:
        """Waits until something is there at `offset`; the end of what is there without a gap from it on. `offset` itself at
        the end of the object. Raises what the flight failed with, where the store itself cannot be read."""
        flight = self._flight
        while not flight.over:
            reached = flight.arrived.reach(offset)
            if reached > offset:
                return reached
            await flight.change()
        if self.info.size is not None:
            return self.info.size
        return flight.result().held.entry.size

    async def _read(self, offset: int, buffer: memoryview) -> None:
        """From the copy, as soon as it holds the range."""
        flight = self._flight
        while True:
            copy = flight.result().copy if flight.over else flight.copy
            there = flight.over or flight.arrived.cover(offset, offset + len(buffer))
            file = await self._opened(copy) if there and copy is not None else None
            if file is not None:
                await file.read_into(offset, buffer)
                return
            if there and flight.over:
                raise Unavailable(f"the copy of {self.info.ref} in the cache is gone")
            await flight.change()
            if copy is not None and not flight.over and flight.copy != copy:
                raise Unavailable(f"the copy of {self.info.ref} in the cache was begun anew")

    async def _opened(self, copy: Copy) -> _File | None:
        """That copy, opened once for all reads; None where there is none under that name any more."""
        async with self._opening:
            if self._file is None or self._file.copy != copy:
                file = _File(copy)
                with suppress(FileNotFoundError):
                    await copy.pool.access.touch(file.open)
                    if self._file is not None:
                        self._file.close()
                    self._file = file
                    return file
                return None
            return self._file

    async def _bypass(self, error: StoreError) -> RangeReader:
        """The store itself, opened once."""
        if self._direct is None:
            raise error
        async with self._opening:
            if self._store is None:
                self._store = cast(RangeReader, await self._stack.enter_async_context(self._direct()))
                self._bypassed(error)
            return self._store


class CacheStream(ByteStream):
    """The object in order, as it arrives. No buffer is held while waiting: what is waited for may need it."""

    def __init__(self, reader: CacheReader, info: ObjectInfo, buffers: BufferPool) -> None:
        self.info = info
        self._reader = reader
        self._buffers = buffers

    async def __aiter__(self) -> AsyncGenerator[memoryview, None]:
        position = 0
        while (end := await self._reader.reach(position)) > position:
            while position < end:
                buffer = await self._buffers.acquire(self)
                try:
                    piece = buffer[: min(PIECE, end - position)]
                    await self._reader.read_into(position, piece)
                    yield piece
                finally:
                    self._buffers.release(self, buffer)
                position += len(piece)


class _File:
    """A copy, opened for reading. A read that hangs is left behind and writes into nobody's buffer any more."""

    def __init__(self, copy: Copy) -> None:
        self.copy = copy
        self._descriptor = -1
        self._lock = threading.Lock()
        self._reads = 0
        self._closed = False

    def open(self) -> None:
        """In a thread. `FileNotFoundError`: what arrived has got another name since."""
        try:
            descriptor = os.open(self.copy.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise translate(error, str(self.copy.path)) from error
        with self._lock:
            if self._closed:
                os.close(descriptor)
            else:
                self._descriptor = descriptor

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        into: list[memoryview] = [buffer]
        try:
            await self.copy.pool.access.touch(partial(self._read, offset, len(buffer), into))
        finally:
            with self._lock:
                into.clear()

    def close(self) -> None:
        """Waits for nobody: the last read that still runs closes the file."""
        with self._lock:
            self._closed = True
            self._close_unused()

    def _read(self, offset: int, length: int, into: list[memoryview]) -> None:
        """In a thread."""
        with self._lock:
            if self._closed or not into:
                return
            self._reads += 1
        try:
            data = os.pread(self._descriptor, length, offset)
            if len(data) < length:
                raise IntegrityError(f"{self.copy.path} ended early, at byte {offset + len(data)}")
            with self._lock:
                for buffer in into:
                    buffer[:] = data
        except OSError as error:
            raise translate(error, str(self.copy.path)) from error
        finally:
            with self._lock:
                self._reads -= 1
                self._close_unused()

    def _close_unused(self) -> None:
        if self._closed and not self._reads and self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
