"""A store to upload to that is down, refuses, hangs, changes its mind or loses its answers, as the test says."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar

from stores.backends.memory import MemoryStore
from stores.contract import Kind, ObjectInfo, PendingUpload
from stores.errors import StorageError, Unavailable
from stores.wrappers.base import WrapperStore


class ShakyStore(WrapperStore):
    """`failure`: what every call raises. `parts`: so many parts are taken before sending fails. `lost_answers`: so many commits
    are carried out and then fail. `gate`: sending waits until it is open. `made` counts the objects that were made, by ref;
    `running` the uploads that are open now, and `most` how many there ever were at once."""

    def __init__(self, inner: MemoryStore) -> None:
        super().__init__(inner)
        self.memory = inner
        self.failure: StorageError | None = None
        self.parts: int | None = None
        self.lost_answers = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.made: Counter[str] = Counter()
        self.begun: list[str] = []
        self.running = 0
        self.most = 0

    def check(self) -> None:
        if self.failure is not None:
            raise self.failure

    @asynccontextmanager
    async def upload(
        self, ref: str, source: Path, *, token: str, replace: bool = False
    ) -> AsyncIterator[PendingUpload]:
        self.begun.append(ref)
        self.check()
        async with self.inner.upload(ref, source, token=token, replace=replace) as pending:
            self.running += 1
            self.most = max(self.most, self.running)
            try:
                yield _Shaky(pending, self, ref)
            finally:
                self.running -= 1

    async def discard(self, ref: str, *, token: str) -> None:
        self.check()
        await self.inner.discard(ref, token=token)

    def content(self, ref: str) -> bytes | None:
        """Of the object, where there is one."""
        found = self.memory.found(ref)
        if found is None:
            return None
        data = bytearray(found[1].size)
        found[1].read_into(0, memoryview(data))
        return bytes(data)

    async def nothing_unfinished(self) -> bool:
        """Whether the store holds objects and nothing else."""
        used = (await self.memory.usage()).used
        return used == sum([info.size or 0 async for info in self.memory.list()])


class _Shaky:
    kind: ClassVar[Kind] = Kind.UPLOAD

    def __init__(self, inner: PendingUpload, store: ShakyStore, ref: str) -> None:
        self.parts = inner.parts
        self.parallel = inner.parallel
        self._inner = inner
        self._store = store
        self._ref = ref

    def length(self, number: int) -> int:
        return self._inner.length(number)

    async def send(self, number: int) -> bool:
        await self._store.gate.wait()
        self._store.check()
        if self._store.parts is not None:
            if self._store.parts <= 0:
                raise Unavailable("the connection broke")
            self._store.parts -= 1
        return await self._inner.send(number)

    async def commit(self) -> ObjectInfo:
        self._store.check()
        before = self._store.memory.found(self._ref)
        info = await self._inner.commit()
        if before is None or before[0].version != info.version:
            self._store.made[self._ref] += 1
        if self._store.lost_answers:
            self._store.lost_answers -= 1
            raise Unavailable("the answer got lost")
        return info
