"""Telling an observer what passes through a store: for metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import ClassVar, Protocol, cast

from stores.contract import (
    DEVICES,
    Ahead,
    BlockingCalls,
    ByteStream,
    DataStore,
    Extent,
    Kind,
    NetworkImage,
    ObjectInfo,
    PendingCopy,
    PendingFile,
    PendingImage,
    PendingStream,
    PendingUpload,
    PendingWrite,
    Presentation,
    RangeReader,
    Usage,
)
from stores.errors import StorageError
from stores.streams import presented
from stores.wrappers.base import WrapperStore

OK = "ok"
CANCELLED = "cancelled"
FAILED = "failed"
"""Outcomes besides the kinds of errors: `FAILED` is anything that is not a `StorageError`."""


class Direction(StrEnum):
    READ = "read"
    WRITTEN = "written"


class StoreObserver(Protocol):
    """Called in the event loop. Never blocks, never raises."""

    def call(self, store: str, operation: str, outcome: str, seconds: float) -> None:
        """One call ended: `OK`, `CANCELLED`, `FAILED`, or the `kind` of its error."""
        ...

    def moved(self, store: str, direction: Direction, count: int) -> None:
        """Bytes that passed through this process. What others read through a path or a URL is not seen."""
        ...


class ReportingStore(WrapperStore):
    """Operations are named like the methods. `present`, `write` and `upload` are over when their context begins; what happens
    inside is reported as `read`, `send` (a part of an upload), `make` and `derive` (of a disk) and `commit`."""

    def __init__(
        self, inner: DataStore, observer: StoreObserver, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(inner)
        self._observer = observer
        self._clock = clock

    async def stat(self, ref: str) -> ObjectInfo:
        with self.measured("stat"):
            return await self.inner.stat(ref)

    @asynccontextmanager
    async def present(self, info: ObjectInfo, kind: Kind) -> AsyncIterator[Presentation]:
        async with AsyncExitStack() as stack:
            with self.measured("present"):
                presentation = await stack.enter_async_context(self.inner.present(info, kind))
            if isinstance(presentation, RangeReader):
                yield _Reader(presentation, self)
            elif isinstance(presentation, ByteStream):
                yield await stack.enter_async_context(presented(_Stream(presentation, self)))
            else:
                yield presentation

    @asynccontextmanager
    async def write(
        self, ref: str, kind: Kind, *, token: str, size: int | None = None, replace: bool = False
    ) -> AsyncIterator[PendingWrite]:
        async with AsyncExitStack() as stack:
            with self.measured("write"):
                pending = await stack.enter_async_context(
                    self.inner.write(ref, kind, token=token, size=size, replace=replace)
                )
            if kind is Kind.BYTE_STREAM:
                yield _PendingStream(cast(PendingStream, pending), self)
            elif kind in DEVICES:
                yield _PendingImage(cast(PendingImage, pending), self)
            else:
                yield _PendingFile(cast(PendingFile, pending), self)

    @asynccontextmanager
    async def upload(
        self, ref: str, source: Path, *, token: str, replace: bool = False
    ) -> AsyncIterator[PendingUpload]:
        async with AsyncExitStack() as stack:
            with self.measured("upload"):
                pending = await stack.enter_async_context(self.inner.upload(ref, source, token=token, replace=replace))
            yield _PendingUpload(pending, self)

    @asynccontextmanager
    async def copy(
        self, source: ObjectInfo, ref: str, *, token: str, replace: bool = False
    ) -> AsyncIterator[PendingCopy]:
        async with AsyncExitStack() as stack:
            with self.measured("copy"):
                pending = await stack.enter_async_context(self.inner.copy(source, ref, token=token, replace=replace))
            yield _PendingCopy(pending, self)

    async def discard(self, ref: str, *, token: str) -> None:
        with self.measured("discard"):
            await self.inner.discard(ref, token=token)

    async def delete(self, ref: str) -> None:
        with self.measured("delete"):
            await self.inner.delete(ref)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """One call from the first object to the last; a listing that is left early counts as cancelled."""
        with self.measured("list"):
            async for info in self.inner.list(prefix):
                yield info

    async def usage(self) -> Usage:
        with self.measured("usage"):
            return await self.inner.usage()

    @contextmanager
    def measured(self, operation: str) -> Iterator[None]:
        """Report what is done inside as one call."""
        began = self._clock()
        outcome = FAILED
        try:
            yield
            outcome = OK
        except StorageError as error:
            outcome = error.kind
            raise
        except (asyncio.CancelledError, GeneratorExit):
            outcome = CANCELLED
            raise
        finally:
            self._observer.call(self.id, operation, outcome, self._clock() - began)

    def moved(self, direction: Direction, count: int) -> None:
        self._observer.moved(self.id, direction, count)


class _Reader(RangeReader):
    def __init__(self, inner: RangeReader, report: ReportingStore) -> None:
        self.info = inner.info
        self._inner = inner
        self._report = report

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        with self._report.measured("read"):
            await self._inner.read_into(offset, buffer)
        self._report.moved(Direction.READ, len(buffer))

    async def read_each(
        self,
        take: Callable[[], tuple[int, memoryview] | None],
        put: Callable[[int, memoryview], None],
        threads: BlockingCalls,
        *,
        ahead: Ahead = lambda: (),
    ) -> None:
        loop = asyncio.get_running_loop()

        def put_and_report(offset: int, buffer: memoryview) -> None:
            put(offset, buffer)
            loop.call_soon_threadsafe(self._report.moved, Direction.READ, len(buffer))

        with self._report.measured("read"):
            await self._inner.read_each(take, put_and_report, threads, ahead=ahead)

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        return await self._inner.extents(offset, length)


class _Stream(ByteStream):
    def __init__(self, inner: ByteStream, report: ReportingStore) -> None:
        self.info = inner.info
        self._inner = inner
        self._report = report

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        with self._report.measured("read"):
            async for piece in self._inner:
                self._report.moved(Direction.READ, len(piece))
                yield piece


class _PendingFile:
    kind: ClassVar[Kind] = Kind.LOCAL_PATH

    def __init__(self, inner: PendingFile, report: ReportingStore) -> None:
        self.path = inner.path
        self._inner = inner
        self._report = report

    async def commit(self) -> ObjectInfo:
        with self._report.measured("commit"):
            return await self._inner.commit()


class _PendingImage:
    def __init__(self, inner: PendingImage, report: ReportingStore) -> None:
        self.kind = inner.kind
        self._inner = inner
        self._report = report

    @property
    def blank(self) -> bool:
        return self._inner.blank

    async def make(self, size: int) -> NetworkImage:
        with self._report.measured("make"):
            return await self._inner.make(size)

    async def derive(self, image: NetworkImage, tag: str | None) -> NetworkImage:
        with self._report.measured("derive"):
            return await self._inner.derive(image, tag)

    async def commit(self) -> ObjectInfo:
        with self._report.measured("commit"):
            return await self._inner.commit()


class _PendingStream:
    kind: ClassVar[Kind] = Kind.BYTE_STREAM

    def __init__(self, inner: PendingStream, report: ReportingStore) -> None:
        self._inner = inner
        self._report = report

    def rereads(self, source: RangeReader) -> None:
        self._inner.rereads(source)

    async def write(self, data: memoryview) -> None:
        await self._inner.write(data)
        self._report.moved(Direction.WRITTEN, len(data))

    async def room(self, most: int) -> memoryview:
        return await self._inner.room(most)

    async def filled(self, room: memoryview) -> None:
        await self._inner.filled(room)
        self._report.moved(Direction.WRITTEN, len(room))

    async def commit(self) -> ObjectInfo:
        with self._report.measured("commit"):
            return await self._inner.commit()


class _PendingCopy:
    def __init__(self, inner: PendingCopy, report: ReportingStore) -> None:
        self._inner = inner
        self._report = report

    async def commit(self) -> ObjectInfo:
        with self._report.measured("commit"):
            return await self._inner.commit()


class _PendingUpload:
    kind: ClassVar[Kind] = Kind.UPLOAD

    def __init__(self, inner: PendingUpload, report: ReportingStore) -> None:
        self.parts = inner.parts
        self.parallel = inner.parallel
        self._inner = inner
        self._report = report

    def length(self, number: int) -> int:
        return self._inner.length(number)

    async def send(self, number: int) -> bool:
        with self._report.measured("send"):
            sent = await self._inner.send(number)
        if sent:
            self._report.moved(Direction.WRITTEN, self.length(number))
        return sent

    async def commit(self) -> ObjectInfo:
        with self._report.measured("commit"):
            return await self._inner.commit()
