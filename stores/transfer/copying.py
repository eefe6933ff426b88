"""One object into one file: several workers, each of which reads a piece, writes it in place and waits its turn to hash it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable
from contextlib import aclosing
from functools import partial

from stores.contract import Progress, RangeReader
from stores.transfer.buffers import BufferPool
from stores.transfer.digests import Digester
from stores.transfer.pieces import Piece, Turns, pieces, zero_views
from stores.transfer.placed import PlacedFile
from stores.transfer.threads import SharedThreads, Threads


class Copy:
    """Moves all of `source` into `file`. What it does not write reads as zeroes."""

    def __init__(
        self,
        source: RangeReader,
        file: PlacedFile,
        *,
        owner: Hashable,
        buffers: BufferPool,
        disk: SharedThreads,
        hashing: Threads,
        digester: Digester | None,
        progress: Progress,
    ) -> None:
        self._source = source
        self._file = file
        self._owner = owner
        self._buffers = buffers
        self._disk = disk
        self._hashing = hashing
        self._digester = digester
        self._progress = progress
        self._turns = Turns()
        self._planning = asyncio.Lock()

    async def run(self, width: int) -> None:
        """With `width` workers. The first failure ends them all and is raised."""
        async with aclosing(pieces(self._source)) as plan:
            try:
                async with asyncio.TaskGroup() as workers:
                    for _ in range(width):
                        workers.create_task(self._work(plan))
            except BaseExceptionGroup as failures:
                first = failures.exceptions[0]
                raise first from first.__cause__

    async def _work(self, plan: AsyncIterator[Piece]) -> None:
        while True:
            # The buffer comes before the piece: the lowest piece in flight then always has one, and those that wait for
            # it to be hashed cannot keep it from arriving.
            buffer = await self._buffers.acquire(self._owner)
            try:
                async with self._planning:
                    piece = await anext(plan, None)
                if piece is None:
                    return
                if not piece.zero:
                    view = buffer[: piece.length]
                    await self._source.read_into(piece.offset, view)
                    await self._disk.run(self._owner, partial(self._file.write, piece.offset, view))
                if self._digester is not None:
                    await self._hash(self._digester, piece, buffer)
            finally:
                self._buffers.release(self._owner, buffer)
            self._progress.advance(piece.length)

    async def _hash(self, digester: Digester, piece: Piece, buffer: memoryview) -> None:
        await self._turns.wait(piece.index)
        for view in zero_views(piece.length) if piece.zero else [buffer[: piece.length]]:
            await self._hashing.run(partial(digester.update, view))
        self._turns.done()
