"""The process-wide mover of bytes: ranges or a stream into a file, digests beside it, within one memory budget.

    RangeReader --> buffer --in place--> file
                          '--in order--> digests

The event loop decides, threads move: each receives pieces and writes them, one more hashes (`stores.transfer.pump`).
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from stores.contract import ByteStream, MiB, PendingStream, Progress, RangeReader, Silent
from stores.errors import TooLarge
from stores.transfer.buffers import BufferPool
from stores.transfer.connections import Connections
from stores.transfer.digests import Digester
from stores.transfer.outgoing import Outgoing
from stores.transfer.pieces import Piece, known_size
from stores.transfer.placed import Place, PlacedFile
from stores.transfer.pump import WIDTH_LIMIT, Pump
from stores.transfer.readahead import ReadAhead
from stores.transfer.relay import Relay
from stores.transfer.scratch import Scratch
from stores.transfer.threads import SharedThreads, Threads
from stores.uninterrupted import uninterrupted

P = ParamSpec("P")
T = TypeVar("T")


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

    def __init__(self, *, memory: int = 48 * MiB, threads: int = 32, scratch: Path | None = None) -> None:
        """`memory` bytes of buffers in all; at most `threads` threads that wait for the network. `scratch`: a directory on a
        disk for the rare stream that comes once and is to be kept for longer than memory lasts (`scratch_file`); None: where
        temporary files go."""
        self.buffers = BufferPool(memory)
        self.outgoing = Outgoing()
        self.connections = Connections()
        self.network = SharedThreads("transfer-network", threads)
        self.disk = SharedThreads("transfer-disk", 16)
        self._scratch = scratch or Path(tempfile.gettempdir())
        self._calls = Threads("storage-call", 64)  # many, since a hung mount keeps those that touch it

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """A short blocking call in a named thread, apart from the threads that move bytes.

        When cancelled before it began, it never will; when it runs, it is waited for, and then `CancelledError` raised.
        """
        return await self._calls.run(partial(function, *args, **kwargs))

    async def fetch(
        self,
        source: RangeReader,
        destination: Path,
        *,
        digests: Sequence[str] = (),
        progress: Progress | None = None,
        whole: Sequence[tuple[int, int]] = (),
        arrived: Callable[[int, int], None] | None = None,
    ) -> Fetched:
        """All of `source` into `destination`, which is made or emptied: read in parallel, written in place, past the page
        cache where the file system allows. Holes of the source and blocks of zeroes take no room.

        `whole`: (start, end) of what an interrupted fetch of the same object has left in `destination`; it is kept and not
        read from `source` again, only from the file, for the digests. `arrived`: told (start, end) of each part that the
        file holds from then on.

        `IntegrityError` when the size is unknown; `NoSpace`, `DeviceFault`; whatever `source` raises.
        """
        size = known_size(source)
        digester = Digester(digests)
        async with self._opened(destination, size, kept=bool(whole)) as file:
            pump = Pump(
                source,
                place=file,
                kept=file,
                digester=digester if digests else None,
                buffers=self.buffers,
                progress=progress or Silent(),
                whole=whole,
                arrived=arrived,
            )
            await pump.run()
        return Fetched(size, digester.hexdigests())

    async def deliver(
        self, source: RangeReader, place: Place, *, digests: Sequence[str] = (), progress: Progress | None = None
    ) -> Fetched:
        """The same to a `place` of the caller's: each piece as soon as it is there, in whatever order."""
        digester = Digester(digests)
        pump = Pump(
            source,
            place=place,
            digester=digester if digests else None,
            buffers=self.buffers,
            progress=progress or Silent(),
        )
        await pump.run()
        return Fetched(known_size(source), digester.hexdigests())

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

        `TooLarge` before a byte past `limit` is written; otherwise as `fetch`. Closing `source` is its caller's.
        """
        progress = progress or Silent()
        digester = Digester(digests)
        position = 0

        def put(piece: memoryview) -> None:
            file.write(position, piece)
            digester.update(piece)

        async with self._opened(destination, 0) as file:
            disk = self.disk.of(file)
            async for piece in source:
                seen = position + len(piece)
                if limit is not None and seen > limit:
                    raise TooLarge(
                        f"the content for {destination} is larger than the limit of {limit} bytes",
                        limit=limit,
                        seen=seen,
                    )
                await disk.run(partial(put, piece))
                position = seen
                progress.advance(len(piece))
            await disk.run(partial(file.resize, position))
        return Fetched(position, digester.hexdigests())

    async def digest(
        self, source: RangeReader, names: Sequence[str], progress: Progress | None = None
    ) -> dict[str, str]:
        """Digests of all of `source`, read in parallel, computed in order."""
        digester = Digester(names)
        pump = Pump(source, place=None, digester=digester, buffers=self.buffers, progress=progress or Silent())
        await pump.run()
        return digester.hexdigests()

    async def send(
        self,
        source: RangeReader,
        pending: PendingStream,
        *,
        digests: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> Fetched:
        """All of `source` into `pending`, whose `commit` is left to the caller: read in parallel into memory of the stream's,
        digested there, sent in order. Raises what the two do, and `IntegrityError` when the size is unknown.

        Nothing of `source` is read any more when this returns, however it ends."""
        pending.rereads(source)
        digester = Digester(digests)
        relay = Relay(source, pending, digester, self._calls, width=min(source.parallel, WIDTH_LIMIT))
        await relay.run(progress or Silent())
        return Fetched(known_size(source), digester.hexdigests())

    async def send_stream(
        self,
        source: ByteStream,
        pending: PendingStream,
        *,
        digests: Sequence[str] = (),
        progress: Progress | None = None,
    ) -> Fetched:
        """The same from a source that comes in order."""
        progress = progress or Silent()
        digester = Digester(digests)
        position = 0

        def put(piece: memoryview, room: memoryview) -> None:
            digester.update(piece)
            room[:] = piece

        async for whole in source:
            piece = whole
            while piece:
                room = await pending.room(len(piece))
                await self._calls.run(partial(put, piece[: len(room)], room))
                await pending.filled(room)
                piece = piece[len(room) :]
            position += len(whole)
            progress.advance(len(whole))
        return Fetched(position, digester.hexdigests())

    def stream(self, reader: RangeReader) -> ByteStream:
        """The object in order, read ahead in parallel."""
        return self._ahead(reader)

    def placed(self, reader: RangeReader) -> AsyncGenerator[tuple[Piece, memoryview | None], None]:
        """The same for who has no use for holes: each piece and its bytes, None for a hole, of which nothing is read. The bytes
        are valid until the next piece is asked for. To be closed (`aclosing`)."""
        return self._ahead(reader).placed()

    def scratch_file(self) -> Scratch:
        """A new one, empty. Its user closes it."""
        return Scratch(self._scratch, self.disk.of(self))

    async def aclose(self) -> None:
        """Gives back threads, connections and buffers; waits for calls that still run. Idempotent."""
        for threads in (self.network, self.disk, self._calls):
            await asyncio.to_thread(threads.close)
        self.connections.close()

    def _ahead(self, reader: RangeReader) -> ReadAhead:
        return ReadAhead(self.buffers, reader, width=min(reader.parallel, WIDTH_LIMIT))

    @asynccontextmanager
    async def _opened(self, path: Path, size: int, *, kept: bool = False) -> AsyncIterator[PlacedFile]:
        file = PlacedFile(path, kept=kept)
        disk = self.disk.of(file)
        try:
            await disk.run(partial(file.open, size))
            yield file
        finally:
            await uninterrupted(disk.run(file.close))  # closing a file on a network file system may wait for its server
