"""The digest of an object, computed from the reads of a tool that converts it: what the tool reads is not read again.

`qemu-img convert` reads an image nearly in order and skips what it need not know (block maps, padding). The digest follows in
order. Reads that come a little early are kept until their turn; when too many are kept, what is missing before them is
waited for if it is under way, and read if it is not. Reads far ahead (a footer, say) do not count, and what never came is read
in the end. So an image written in order passes over the network once; one whose blocks lie in wild disorder, up to twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from stores.contract import Extent, MiB, RangeReader
from stores.errors import StoreUnsupported
from stores.transfer.digests import Digester
from stores.transfer.engine import TransferEngine
from stores.transfer.slices import Slice

KEPT_LIMIT = 8 * MiB
"""The most that is kept of early reads. Bytes."""

REACH = 64 * MiB
"""How far ahead of the digest a read may begin and still count. Bytes."""


class DigestingReader(RangeReader):
    """Passes reads through."""

    def __init__(self, inner: RangeReader, algorithm: str, engine: TransferEngine) -> None:
        if inner.info.size is None:
            raise StoreUnsupported(f"the size of {inner.info.ref} is not known", ref=inner.info.ref)
        self.info = inner.info
        self._inner = inner
        self._size = inner.info.size
        self._engine = engine
        self._digester = Digester([algorithm])
        self._position = 0  # everything before it is in the digest
        self._kept: dict[int, bytes] = {}  # by offset; all of it begins after the position
        self._under_way: list[range] = []
        self._hashing = asyncio.Lock()
        self._moved = asyncio.Event()

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        here = range(offset, offset + len(buffer))
        self._under_way.append(here)
        try:
            await self._inner.read_into(offset, buffer)
            while not await self._taken(here, buffer):
                await self._moved.wait()
        finally:
            self._under_way.remove(here)
            self._tell()

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        return await self._inner.extents(offset, length)

    async def finish(self) -> dict[str, str]:
        """The digest, once nobody reads any more; reads what has not passed. Lower-case hex by algorithm."""
        while self._position < self._size:
            await self._read_on(min(self._kept, default=self._size))
            await self._take_kept()
        return self._digester.hexdigests()

    async def _taken(self, here: range, buffer: memoryview) -> bool:
        """False if `here` has to wait for an earlier read that is under way."""
        async with self._hashing:
            while self._early(here):
                if sum(map(len, self._kept.values())) + len(buffer) <= KEPT_LIMIT:
                    self._kept[here.start] = bytes(buffer)
                    return True
                if any(other.start < here.start and other.stop > self._position for other in self._under_way):
                    return False
                await self._read_on(min([here.start, *self._kept]))
                await self._take_kept()
            if here.start <= self._position:
                await self._take(here.start, buffer)
                await self._take_kept()
            return True

    def _early(self, here: range) -> bool:
        return self._position < here.start <= self._position + REACH and here.start not in self._kept

    async def _take(self, start: int, content: memoryview) -> None:
        """`content` begins at or before the position."""
        if start + len(content) > self._position:
            await self._engine.run(self._digester.update, content[self._position - start :])
            self._position = start + len(content)
            self._tell()

    async def _take_kept(self) -> None:
        while self._kept and (start := min(self._kept)) <= self._position:
            await self._take(start, memoryview(self._kept.pop(start)))

    async def _read_on(self, end: int) -> None:
        """Take what lies between the position and `end` from the object itself."""
        if self._position < end:
            async for piece in self._engine.stream(Slice(self._inner, self._position, end)):
                await self._engine.run(self._digester.update, piece)
                self._position += len(piece)

    def _tell(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()
