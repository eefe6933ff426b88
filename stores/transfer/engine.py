"""The process-wide mover of bytes: ranges or a stream into a file, digests beside it, within one memory budget.

    RangeReader --read_into--> buffer --pwrite, in place--> file
                                 '-----in order-----------> digests

The event loop decides, threads move: network threads fill buffers, disk threads write them, digest threads read them.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from stores.contract import ByteStream, MiB, Progress, RangeReader, Silent
from stores.errors import TooLarge
from stores.transfer.buffers import BufferPool
from stores.transfer.connections import Connections
from stores.transfer.copying import Copy
from stores.transfer.digests import Digester
from stores.transfer.pieces import known_size
from stores.transfer.placed import PlacedFile
from stores.transfer.readahead import ReadAhead
from stores.transfer.threads import SharedThreads, Threads

P = ParamSpec("P")
T = TypeVar("T")

WIDTH = 5
"""Pieces of one transfer in flight: four keep a fast server busy while one more is written or hashed."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """What arrived: bytes, and the digests that were asked for, in lower-case hex."""

    size: int
    digests: dict[str, str] = field(default_factory=dict)


class TransferEngine:
    """One per process. All transfers share its buffers and threads, fairly: see `stores.transfer.fairness`.

    Nothing it writes is fsynced: durability is the caller's `PendingFile.commit`. A destination that a failed or cancelled
    call leaves behind is incomplete, and its caller's to remove. After cancellation nothing of the call runs any more.
    Callers name the phases of their `progress`; the engine advances it by bytes of the object, holes included.
    """

    def __init__(self, *, memory: int = 48 * MiB, threads: int = 32) -> None:
        """`memory` bytes of buffers in all; at most `threads` threads that wait for the network."""
        self.buffers = BufferPool(memory)
        self.connections = Connections()
        self.network = SharedThreads("transfer-network", threads)
        self._disk = SharedThreads("transfer-disk", 16)
        self._calls = Threads("storage-call", 16)
        self._hashing = Threads("transfer-digest", os.cpu_count() or 1)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """A short blocking call in a named thread, apart from the threads that move bytes.

        When cancelled before it began, it never will; when it runs, it is waited for, and then `CancelledError` raised.
        """
        return await self._calls.run(partial(function, *args, **kwargs))

    async def fetch(
        self, source: RangeReader, destination: Path, *, digests: Sequence[str] = (), progress: Progress | None = None
    ) -> Fetched:
        """All of `source` into `destination`, which is made or emptied: read in parallel, written in place, past the page
        cache where the file system allows. Holes of the source and blocks of zeroes take no room.

        `IntegrityError` when the size is unknown; `NoSpace`, `DeviceFault`; whatever `source` raises.
        """
        size = known_size(source)
        digester = Digester(digests)
        file = PlacedFile(destination)
        try:
            await self._disk.of(file).run(partial(file.open, size))
            copy = Copy(
                source,
                file,
                width=WIDTH,
                buffers=self.buffers,
                digester=digester if digests else None,
                progress=progress or Silent(),
            )
            await copy.run()
        finally:
            file.close()
        return Fetched(size, digester.hexdigests())

    async def store_stream(
        self,
        source: ByteStream | AsyncIterator[memoryview],
        destination: Path,
        *,
        limit: int | None = None,
        digests: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> Fetched:
        """A sequential source into `destination`, which is made or emptied. Blocks of zeroes take no room.

        `TooLarge` before a byte past `limit` is written; otherwise as `fetch`.
        """
        progress = progress or Silent()
        digester = Digester(digests)
        position = 0
        file = PlacedFile(destination)
        disk = self._disk.of(file)
        try:
            await disk.run(file.open)
            async for piece in source:
                if limit is not None and position + len(piece) > limit:
                    raise TooLarge(
                        f"the content for {destination} is larger than the limit of {limit} bytes",
                        limit=limit,
                        seen=position + len(piece),
                    )
                await disk.run(partial(file.write, position, piece))
                if digests:
                    await self._hashing.run(partial(digester.update, piece))
                position += len(piece)
                progress.advance(len(piece))
            await disk.run(partial(file.resize, position))
        finally:
            file.close()
        return Fetched(position, digester.hexdigests())

    async def digest(
        self, source: RangeReader, names: Sequence[str], progress: Progress | None = None
    ) -> dict[str, str]:
        """Digests of all of `source`, read in parallel, computed in order."""
        progress = progress or Silent()
        digester = Digester(names)
        async with aclosing(ReadAhead(self.buffers, source, width=WIDTH).pieces()) as stream:
            async for piece in stream:
                await self._hashing.run(partial(digester.update, piece))
                progress.advance(len(piece))
        return digester.hexdigests()

    def stream(self, reader: RangeReader) -> ByteStream:
        """The object in order, read ahead in parallel."""
        return ReadAhead(self.buffers, reader, width=WIDTH)

    async def aclose(self) -> None:
        """Gives back threads, connections and buffers; waits for calls that still run. Idempotent."""
        for threads in (self.network, self._disk, self._hashing, self._calls):
            await asyncio.to_thread(threads.close)
        self.connections.close()
