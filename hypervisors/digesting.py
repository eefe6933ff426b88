"""The digest of an object, computed from the reads of a tool that converts it: what the tool reads is not read again.

`qemu-img convert` reads an image nearly in order and skips what it need not know (block maps, padding). The digest follows in
order: a read that is a little ahead waits for the earlier ones that are under way, small gaps between reads are filled by
reads of its own, and reads far ahead (a footer, say) do not count. What is missing when the tool has ended is read then. So
an image written in order passes over the network once; one whose blocks lie in wild disorder passes twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from stores.contract import Extent, MiB, RangeReader
from stores.errors import StoreUnsupported
from stores.transfer.digests import Digester
from stores.transfer.engine import TransferEngine

REACH = 8 * MiB
"""How far ahead of the digest a read may begin and still count. Bytes."""


class DigestingReader(RangeReader):
    """Passes reads through. Holds no memory of its own beyond one filled gap."""

    def __init__(self, inner: RangeReader, algorithm: str, engine: TransferEngine) -> None:
        if inner.info.size is None:
            raise StoreUnsupported(f"the size of {inner.info.ref} is not known", ref=inner.info.ref)
        self.info = inner.info
        self._inner = inner
        self._size = inner.info.size
        self._engine = engine
        self._digester = Digester([algorithm])
        self._position = 0  # everything before it is in the digest
        self._under_way: list[range] = []
        self._hashing = asyncio.Lock()
        self._moved = asyncio.Event()

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        here = range(offset, offset + len(buffer))
        self._under_way.append(here)
        try:
            await self._inner.read_into(offset, buffer)
            while self._earlier_under_way(here):
                await self._moved.wait()
            await self._count(here, buffer)
        finally:
            self._under_way.remove(here)
            self._tell()

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        return await self._inner.extents(offset, length)

    async def finish(self) -> dict[str, str]:
        """The digest, once nobody reads any more; reads what has not passed. Lower-case hex by algorithm."""
        if self._position < self._size:
            async for piece in self._engine.stream(_Rest(self._inner, self._position)):
                await self._engine.run(self._digester.update, piece)
            self._position = self._size
        return self._digester.hexdigests()

    def _counts(self, here: range) -> bool:
        return here.stop > self._position and here.start - self._position <= REACH

    def _earlier_under_way(self, here: range) -> bool:
        return self._counts(here) and any(
            other.start < here.start and other.stop > self._position for other in self._under_way
        )

    async def _count(self, here: range, buffer: memoryview) -> None:
        async with self._hashing:
            if not self._counts(here):
                return
            if here.start > self._position:
                gap = await self._inner.read(self._position, here.start - self._position)
                await self._engine.run(self._digester.update, memoryview(gap))
                self._position = here.start
            await self._engine.run(self._digester.update, buffer[self._position - here.start :])
            self._position = here.stop
            self._tell()

    def _tell(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()


class _Rest(RangeReader):
    """The object from `start` on, as an object."""

    def __init__(self, inner: RangeReader, start: int) -> None:
        self.info = replace(inner.info, size=(inner.info.size or 0) - start)
        self._inner = inner
        self._start = start

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        await self._inner.read_into(self._start + offset, buffer)
