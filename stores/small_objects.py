"""A store of objects of a few bytes, each kept as a whole wherever there is room for that: notes about images, of stores that
keep nothing else but images."""

from __future__ import annotations

import abc
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar

from stores.contract import ByteStream, DataStore, Kind, MiB, ObjectInfo, PendingStream, Presentation, RangeReader
from stores.errors import AlreadyExists, IntegrityError, NotFound, TooLarge
from stores.paths import check_prefix, check_ref, in_listing
from stores.streams import presented

LIMIT = 1 * MiB
"""Bytes of one object at most."""


class SmallObjects(DataStore):
    """What a subclass does is done as a whole or not at all, and durable when it returns."""

    writes = frozenset({Kind.BYTE_STREAM})

    @abc.abstractmethod
    async def get(self, ref: str) -> bytes | None:
        """None if there is none."""

    @abc.abstractmethod
    async def put(self, ref: str, content: bytes) -> None:
        """In place of what is there."""

    @abc.abstractmethod
    async def remove(self, ref: str) -> None:
        """Idempotent."""

    @abc.abstractmethod
    async def refs(self) -> list[str]:
        """Of all."""

    def offers(self, info: ObjectInfo | None = None) -> frozenset[Kind]:
        return frozenset({Kind.RANGE_READER, Kind.BYTE_STREAM})

    async def stat(self, ref: str) -> ObjectInfo:
        return _info(ref, await self._content(ref))

    @asynccontextmanager
    async def present(self, info: ObjectInfo, kind: Kind) -> AsyncIterator[Presentation]:
        content = await self._content(info.ref)
        if kind is Kind.RANGE_READER:
            yield _Reader(info.ref, content)
        elif kind is Kind.BYTE_STREAM:
            async with presented(_Stream(info.ref, content)) as stream:
                yield stream
        else:
            raise self._unsupported(f"reading as {kind}")

    @asynccontextmanager
    async def write(
        self, ref: str, kind: Kind, *, token: str, size: int | None = None, replace: bool = False
    ) -> AsyncIterator[PendingStream]:
        """Nothing is kept before the commit, so that there is never anything to discard."""
        check_ref(ref)
        if kind is not Kind.BYTE_STREAM:
            raise self._unsupported(f"writing as {kind}")
        if not replace:
            await self.refuse_taken(ref)
        yield _Pending(self, ref, size, replace=replace)

    async def delete(self, ref: str) -> None:
        check_ref(ref)
        await self.remove(ref)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        prefix = check_prefix(prefix)
        for ref in sorted(await self.refs()):
            if in_listing(ref, prefix):
                yield await self.stat(ref)

    async def refuse_taken(self, ref: str) -> None:
        if await self.get(ref) is not None:
            raise AlreadyExists(f"{ref} exists already; nothing was overwritten", ref=ref, store=self.id)

    async def _content(self, ref: str) -> bytes:
        check_ref(ref)
        content = await self.get(ref)
        if content is None:
            raise NotFound(f"there is no object {ref} in store {self.id}", ref=ref, store=self.id)
        return content


def _info(ref: str, content: bytes) -> ObjectInfo:
    return ObjectInfo(ref, len(content), version=hashlib.sha256(content).hexdigest()[:16])


class _Reader(RangeReader):
    def __init__(self, ref: str, content: bytes) -> None:
        self.info = _info(ref, content)
        self._content = content

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        piece = self._content[offset : offset + len(buffer)]
        if len(piece) < len(buffer):
            raise IntegrityError(f"{self.info.ref} ends at byte {len(self._content)}", ref=self.info.ref)
        buffer[:] = piece


class _Stream(ByteStream):
    def __init__(self, ref: str, content: bytes) -> None:
        self.info = _info(ref, content)
        self._content = content

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        yield memoryview(self._content)


class _Pending:
    kind: ClassVar[Kind] = Kind.BYTE_STREAM

    def __init__(self, store: SmallObjects, ref: str, size: int | None, *, replace: bool) -> None:
        self._store = store
        self._ref = ref
        self._size = size
        self._replace = replace
        self._content = bytearray()

    def rereads(self, source: RangeReader) -> None:
        """Keeps everything itself."""

    async def write(self, data: memoryview) -> None:
        if len(self._content) + len(data) > LIMIT:
            raise TooLarge(
                f"{self._ref} is larger than {LIMIT} bytes; store {self._store.id} keeps images and small notes only",
                limit=LIMIT,
                seen=len(self._content) + len(data),
            )
        self._content += data

    async def room(self, most: int) -> memoryview:
        return memoryview(bytearray(min(most, LIMIT)))

    async def filled(self, room: memoryview) -> None:
        await self.write(room)

    async def commit(self) -> ObjectInfo:
        content = bytes(self._content)
        if self._size is not None and len(content) != self._size:
            raise IntegrityError(
                f"{self._ref}: {self._size} bytes were announced and {len(content)} were written",
                ref=self._ref,
                needed=self._size,
                seen=len(content),
            )
        if not self._replace:
            await self._store.refuse_taken(self._ref)
        await self._store.put(self._ref, content)
        return _info(self._ref, content)
