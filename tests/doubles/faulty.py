"""A store around a store that fails, hangs or falls short at chosen calls."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeAlias, cast

from stores.contract import (
    ByteStream,
    DataStore,
    Extent,
    Kind,
    ObjectInfo,
    PendingFile,
    PendingStream,
    PendingUpload,
    PendingWrite,
    Presentation,
    RangeReader,
    Usage,
)
from stores.errors import IntegrityError
from stores.streams import presented
from stores.wrappers.base import WrapperStore


@dataclass(frozen=True)
class Fail:
    """The call raises this error, and does nothing."""

    error: Exception


@dataclass(frozen=True)
class Hang:
    """The call does not return until it is cancelled."""


@dataclass(frozen=True)
class Short:
    """A read gives only `count` bytes: a stream then ends as if that were all, a range fails with `IntegrityError`."""

    count: int


Fault: TypeAlias = Fail | Hang | Short
Plan: TypeAlias = Mapping[tuple[str, int], Fault]
"""By operation and how many times it was called, from 1: `{("stat", 2): Fail(Unavailable("..."))}`."""


class FaultyStore(WrapperStore):
    """Operations: stat, present, read (a range, or a piece of a stream), write and upload (the beginning), send (a piece or a
    part), commit, discard, delete, list (each object) and usage. `calls` counts them."""

    def __init__(self, inner: DataStore, plan: Plan) -> None:
        super().__init__(inner)
        self.calls: Counter[str] = Counter()
        self.hanging = asyncio.Event()
        self._plan = plan

    async def step(self, operation: str) -> Short | None:
        """Count a call, and let it fail or hang if that is planned."""
        self.calls[operation] += 1
        match self._plan.get((operation, self.calls[operation])):
            case Fail(error):
                raise error
            case Hang():
                self.hanging.set()
                await asyncio.Event().wait()
            case Short() as short:
                return short
        return None

    async def stat(self, ref: str) -> ObjectInfo:
        await self.step("stat")
        return await self.inner.stat(ref)

    @asynccontextmanager
    async def present(self, info: ObjectInfo, kind: Kind) -> AsyncIterator[Presentation]:
        await self.step("present")
        async with self.inner.present(info, kind) as presentation:
            if isinstance(presentation, RangeReader):
                yield _Reader(presentation, self)
            elif isinstance(presentation, ByteStream):
                async with presented(_Stream(presentation, self)) as stream:
                    yield stream
            else:
                yield presentation

    @asynccontextmanager
    async def write(
        self, ref: str, kind: Kind, *, token: str, size: int | None = None, replace: bool = False
    ) -> AsyncIterator[PendingWrite]:
        await self.step("write")
        async with self.inner.write(ref, kind, token=token, size=size, replace=replace) as pending:
            if kind is Kind.BYTE_STREAM:
                yield _PendingStream(cast(PendingStream, pending), self)
            else:
                yield _PendingFile(cast(PendingFile, pending), self)

    @asynccontextmanager
    async def upload(
        self, ref: str, source: Path, *, token: str, replace: bool = False
    ) -> AsyncIterator[PendingUpload]:
        await self.step("upload")
        async with self.inner.upload(ref, source, token=token, replace=replace) as pending:
            yield _PendingUpload(pending, self)

    async def discard(self, ref: str, *, token: str) -> None:
        await self.step("discard")
        await self.inner.discard(ref, token=token)

    async def delete(self, ref: str) -> None:
        await self.step("delete")
        await self.inner.delete(ref)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        async for info in self.inner.list(prefix):
            await self.step("list")
            yield info

    async def usage(self) -> Usage:
        await self.step("usage")
        return await self.inner.usage()


class _Reader(RangeReader):
    def __init__(self, inner: RangeReader, faulty: FaultyStore) -> None:
        self.info = inner.info
        self._inner = inner
        self._faulty = faulty

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        short = await self._faulty.step("read")
        if short is None:
            await self._inner.read_into(offset, buffer)
            return
        await self._inner.read_into(offset, buffer[: short.count])
        raise IntegrityError(f"{self.info.ref} ended early, at byte {offset + short.count}")

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        return await self._inner.extents(offset, length)


class _Stream(ByteStream):
    def __init__(self, inner: ByteStream, faulty: FaultyStore) -> None:
        self.info = inner.info
        self._inner = inner
        self._faulty = faulty

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        async for piece in self._inner:
            short = await self._faulty.step("read")
            if short is not None:
                yield piece[: short.count]
                return
            yield piece


class _PendingFile:
    kind: ClassVar[Kind] = Kind.LOCAL_PATH

    def __init__(self, inner: PendingFile, faulty: FaultyStore) -> None:
        self.path = inner.path
        self._inner = inner
        self._faulty = faulty

    async def commit(self) -> ObjectInfo:
        await self._faulty.step("commit")
        return await self._inner.commit()


class _PendingStream:
    kind: ClassVar[Kind] = Kind.BYTE_STREAM

    def __init__(self, inner: PendingStream, faulty: FaultyStore) -> None:
        self._inner = inner
        self._faulty = faulty

    def rereads(self, source: RangeReader) -> None:
        self._inner.rereads(source)

    async def write(self, data: memoryview) -> None:
        await self._faulty.step("send")
        await self._inner.write(data)

    async def room(self, most: int) -> memoryview:
        return await self._inner.room(most)

    async def filled(self, room: memoryview) -> None:
        await self._faulty.step("send")
        await self._inner.filled(room)

    async def commit(self) -> ObjectInfo:
        await self._faulty.step("commit")
        return await self._inner.commit()


class _PendingUpload:
    kind: ClassVar[Kind] = Kind.UPLOAD

    def __init__(self, inner: PendingUpload, faulty: FaultyStore) -> None:
        self.parts = inner.parts
        self.parallel = inner.parallel
        self._inner = inner
        self._faulty = faulty

    def length(self, number: int) -> int:
        return self._inner.length(number)

    async def send(self, number: int) -> bool:
        await self._faulty.step("send")
        return await self._inner.send(number)

    async def commit(self) -> ObjectInfo:
        await self._faulty.step("commit")
        return await self._inner.commit()
