"""Sending a local file into a memory store, in parts that the store keeps until they are published or discarded."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from stores.backends.sparse import SparseBytes
from stores.contract import Kind, MiB, ObjectInfo
from stores.errors import IntegrityError
from stores.transfer.parts import Parts
from stores.transfer.source import SourceFile

PART = 1 * MiB


@dataclass(slots=True)
class Unfinished:
    """What was sent: the content so far, and which parts of it."""

    content: SparseBytes = field(default_factory=SparseBytes)
    parts: set[int] = field(default_factory=set)


class Shelf(Protocol):
    """Where uploads of a store and its objects are kept."""

    def unfinished(self, ref: str, token: str) -> Unfinished: ...
    def found(self, ref: str) -> tuple[ObjectInfo, SparseBytes] | None: ...
    def refuse_taken(self, ref: str, replace: bool) -> None: ...
    def make_room(self, ref: str, count: int) -> None: ...
    def publish(self, ref: str, content: SparseBytes, *, replace: bool) -> ObjectInfo: ...
    async def discard(self, ref: str, *, token: str) -> None: ...


class MemoryUpload:
    """A `PendingUpload`. Reads the file in the event loop, a part at a time: a store in memory is for small things."""

    kind: ClassVar[Kind] = Kind.UPLOAD
    parallel = 2

    def __init__(self, store: Shelf, ref: str, source: SourceFile, *, token: str, replace: bool) -> None:
        self._store = store
        self._ref = ref
        self._source = source
        self._token = token
        self._replace = replace
        self._cut = Parts(source.size, PART)
        self.parts = self._cut.count
        self._stored: ObjectInfo | None = None
        self._there: set[int] = set()  # parts that are known to be right

    def length(self, number: int) -> int:
        return self._cut.length(number)

    async def open(self) -> None:
        """Finds what is there already. `AlreadyExists` where another object has the name and is not to be replaced."""
        found = self._store.found(self._ref)
        if found is not None and found[0].size == self._source.size and await self._holds(found[1]):
            self._stored = found[0]
            return
        self._store.refuse_taken(self._ref, self._replace)
        if self._unfinished().content.size > self._source.size:
            await self._store.discard(self._ref, token=self._token)  # of another file

    async def send(self, number: int) -> bool:
        await asyncio.sleep(0)
        if self._stored is not None or self._is_there(number):
            return False
        start, end = self._cut.range(number)
        unfinished = self._unfinished()
        self._store.make_room(self._ref, max(0, end - unfinished.content.size))
        unfinished.content.write_at(start, self._read(number))
        unfinished.parts.add(number)
        self._there.add(number)
        return True

    async def commit(self) -> ObjectInfo:
        if self._stored is None:
            for number in range(1, self.parts + 1):
                if not self._is_there(number):
                    raise IntegrityError(f"{self._ref}: part {number} of {self.parts} was not sent", ref=self._ref)
            self._stored = self._store.publish(self._ref, self._unfinished().content, replace=self._replace)
        await self._store.discard(self._ref, token=self._token)
        return self._stored

    def _is_there(self, number: int) -> bool:
        unfinished = self._unfinished()
        if number not in self._there and number in unfinished.parts and self._agrees(unfinished.content, number):
            self._there.add(number)
        return number in self._there

    def _unfinished(self) -> Unfinished:
        return self._store.unfinished(self._ref, self._token)

    async def _holds(self, content: SparseBytes) -> bool:
        for number in range(1, self.parts + 1):
            if not self._agrees(content, number):
                return False
            await asyncio.sleep(0)
        return True

    def _agrees(self, content: SparseBytes, number: int) -> bool:
        start, end = self._cut.range(number)
        if content.size < end:
            return False
        held = bytearray(end - start)
        content.read_into(start, memoryview(held))
        return held == self._read(number)

    def _read(self, number: int) -> memoryview:
        start, end = self._cut.range(number)
        data = bytearray(end - start)
        self._source.read(start, memoryview(data))
        return memoryview(data)
