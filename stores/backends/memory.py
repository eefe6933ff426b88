"""A store in this process's memory: sparse, versioned, with an optional bound."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import ClassVar

from stores.backends.memory_upload import MemoryUpload, Unfinished
from stores.backends.sparse import BLOCK, SparseBytes
from stores.contract import (
    ByteStream,
    DataStore,
    Extent,
    Kind,
    MiB,
    ObjectInfo,
    PendingUpload,
    PendingWrite,
    Presentation,
    RangeReader,
    Usage,
)
from stores.errors import AlreadyExists, IntegrityError, NotFound, ObjectChanged
from stores.os_errors import no_space
from stores.paths import check_prefix, check_ref, in_listing
from stores.streams import presented
from stores.transfer.source import SourceFile

__all__ = ["BLOCK", "MemoryStore", "SparseBytes"]

PIECE = 1 * MiB


class _Object:
    __slots__ = ("content", "info")

    def __init__(self, info: ObjectInfo, content: SparseBytes) -> None:
        self.info = info
        self.content = content


class _Reader(RangeReader):
    def __init__(self, found: _Object) -> None:
        self.info = found.info
        self._content = found.content

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        _check_range(self.info, self._content.size, offset, len(buffer))
        for start in range(0, len(buffer), PIECE):
            piece = buffer[start : start + PIECE]
            self._content.read_into(offset + start, piece)
            await asyncio.sleep(0)  # a large read must not hold up everybody else

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        _check_range(self.info, self._content.size, offset, length)
        return self._content.extents(offset, length)


def _check_range(info: ObjectInfo, size: int, offset: int, length: int) -> None:
    if offset < 0 or offset + length > size:
        raise IntegrityError(
            f"{info.ref} ends at byte {size}, and bytes up to {offset + length} were asked for",
            ref=info.ref,
            size=size,
            needed=offset + length,
        )


class _Stream(ByteStream):
    def __init__(self, found: _Object) -> None:
        self.info = found.info
        self._content = found.content

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        content = self._content
        buffer = memoryview(bytearray(min(PIECE, content.size)))
        for offset in range(0, content.size, PIECE):
            piece = buffer[: min(PIECE, content.size - offset)]
            content.read_into(offset, piece)
            yield piece
            await asyncio.sleep(0)


class _PendingStream:
    kind: ClassVar[Kind] = Kind.BYTE_STREAM

    def __init__(self, store: MemoryStore, ref: str, size: int | None, replace: bool) -> None:
        self.content = SparseBytes()
        self._store = store
        self._ref = ref
        self._size = size
        self._replace = replace

    def rereads(self, source: RangeReader) -> None:
        """Keeps everything itself."""

    async def write(self, data: memoryview) -> None:
        self._store.make_room(self._ref, len(data))
        self.content.append(data)
        await asyncio.sleep(0)

    async def room(self, most: int) -> memoryview:
        return memoryview(bytearray(min(PIECE, most)))

    async def filled(self, room: memoryview) -> None:
        await self.write(room)

    async def commit(self) -> ObjectInfo:
        if self._size is not None and self.content.size != self._size:
            raise IntegrityError(
                f"{self._ref}: {self._size} bytes were announced and {self.content.size} were written",
                ref=self._ref,
                needed=self._size,
                seen=self.content.size,
            )
        return self._store.publish(self._ref, self.content, replace=self._replace)


class MemoryStore(DataStore):
    """Objects live as long as this store object. An opened presentation keeps the version it was opened with.

    `capacity` bounds the sizes of all objects together, unfinished writes included; `NoSpace` beyond it.
    """

    writes = frozenset({Kind.BYTE_STREAM, Kind.UPLOAD})

    def __init__(
        self, name: str = "memory", *, capacity: int | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self.id = f"memory:{name}"
        self._capacity = capacity
        self._clock = clock
        self._objects: dict[str, _Object] = {}
        self._pending: set[_PendingStream] = set()
        self._unfinished: dict[tuple[str, str], Unfinished] = {}  # uploads, by ref and token
        self._versions = itertools.count(1)

    def offers(self, info: ObjectInfo | None = None) -> frozenset[Kind]:
        return frozenset({Kind.RANGE_READER, Kind.BYTE_STREAM})

    async def stat(self, ref: str) -> ObjectInfo:
        return self._find(ref).info

    @asynccontextmanager
    async def present(self, info: ObjectInfo, kind: Kind) -> AsyncIterator[Presentation]:
        found = self._find(info.ref)
        if info.version is not None and info.version != found.info.version:
            raise ObjectChanged(
                f"{info.ref} changed since it was looked at; start again",
                ref=info.ref,
                expected=info.version,
                found=found.info.version,
            )
        if kind is Kind.RANGE_READER:
            yield _Reader(found)
        elif kind is Kind.BYTE_STREAM:
            async with presented(_Stream(found)) as stream:
                yield stream
        else:
            raise self._unsupported(f"reading as {kind}")

    @asynccontextmanager
    async def write(
        self, ref: str, kind: Kind, *, token: str, size: int | None = None, replace: bool = False
    ) -> AsyncIterator[PendingWrite]:
        check_ref(ref)
        if kind is not Kind.BYTE_STREAM:
            raise self._unsupported(f"writing as {kind}")
        self.refuse_taken(ref, replace)
        pending = _PendingStream(self, ref, size, replace)
        self._pending.add(pending)
        try:
            yield pending
        finally:
            self._pending.discard(pending)

    @asynccontextmanager
    async def upload(
        self, ref: str, source: Path, *, token: str, replace: bool = False
    ) -> AsyncIterator[PendingUpload]:
        """What was sent lives as long as this store object."""
        check_ref(ref)
        with closing(SourceFile(source)) as file:
            file.open()
            upload = MemoryUpload(self, ref, file, token=token, replace=replace)
            await upload.open()
            yield upload

    async def discard(self, ref: str, *, token: str) -> None:
        check_ref(ref)
        self._unfinished.pop((ref, token), None)

    async def delete(self, ref: str) -> None:
        check_ref(ref)
        self._objects.pop(ref, None)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        prefix = check_prefix(prefix)
        for ref in sorted(ref for ref in self._objects if in_listing(ref, prefix)):
            if ref in self._objects:  # it may be gone since the previous one was handed out
                yield self._objects[ref].info

    async def usage(self) -> Usage:
        return Usage(used=self._held(), capacity=self._capacity)

    def make_room(self, ref: str, count: int) -> None:
        """Refuses `count` more bytes where they could pass the capacity."""
        if self._capacity is not None and self._held() + count > self._capacity:
            raise no_space(ref, needed=count, available=max(0, self._capacity - self._held()), store=self.id)

    def publish(self, ref: str, content: SparseBytes, *, replace: bool) -> ObjectInfo:
        """Make `content` the object `ref`, in one step."""
        self.refuse_taken(ref, replace)
        info = ObjectInfo(ref, content.size, version=str(next(self._versions)), modified=self._clock())
        self._objects[ref] = _Object(info, content)
        return info

    def unfinished(self, ref: str, token: str) -> Unfinished:
        """What an upload has sent so far; from now on there is one."""
        return self._unfinished.setdefault((ref, token), Unfinished())

    def found(self, ref: str) -> tuple[ObjectInfo, SparseBytes] | None:
        """The object, where there is one."""
        found = self._objects.get(ref)
        return (found.info, found.content) if found else None

    def _held(self) -> int:
        published = sum(found.content.size for found in self._objects.values())
        pending = sum(pending.content.size for pending in self._pending)
        return published + pending + sum(upload.content.size for upload in self._unfinished.values())

    def refuse_taken(self, ref: str, replace: bool) -> None:
        """`AlreadyExists` where the name is taken and not to be replaced."""
        if ref in self._objects and not replace:
            raise AlreadyExists(f"{ref} exists already; nothing was overwritten", ref=ref, store=self.id)

    def _find(self, ref: str) -> _Object:
        check_ref(ref)
        if ref not in self._objects:
            raise NotFound(f"there is no object {ref} in store {self.id}", ref=ref, store=self.id)
        return self._objects[ref]
