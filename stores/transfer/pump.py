"""All of one object, past a file and digests: several workers, each of which reads a piece, writes it in place and hashes it in
its turn, all in one thread and while the piece is still in the processor's cache."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from functools import partial

from stores.contract import Progress, RangeReader
from stores.transfer.buffers import BufferPool
from stores.transfer.digests import Digester
from stores.transfer.pieces import Piece, Turns, windows, zero_views
from stores.transfer.placed import PlacedFile
from stores.transfer.ranges import Ranges
from stores.transfer.threads import Threads

WIDTH_LIMIT = 12
"""Most pieces of one transfer in flight, whatever its source would bear: half of the default budget."""


class Pump:
    """Reads all of `source` in parallel, in threads of its own.

    They are its own because they wait for one another when they hash: in a pool shared with others, the one that all wait
    for might not get a thread. The buffers, of which each needs one, bound the threads of all transfers together.
    """

    def __init__(
        self,
        source: RangeReader,
        *,
        file: PlacedFile | None,
        digester: Digester | None,
        buffers: BufferPool,
        progress: Progress,
        whole: Sequence[tuple[int, int]] = (),
        arrived: Callable[[int, int], None] | None = None,
    ) -> None:
        """Data goes to `file`, where there is one, in any order; everything goes to `digester` in order, holes as zeroes.

        `whole` and `arrived`: see `TransferEngine.fetch`.
        """
        self._source = source
        self._file = file
        self._digester = digester
        self._buffers = buffers
        self._progress = progress
        self._whole = Ranges(whole)
        self._arrived = arrived
        self._width = min(source.parallel, WIDTH_LIMIT)
        self._owner: Hashable = object()
        self._loop = asyncio.get_running_loop()
        self._turns = Turns()
        self._todo: deque[Piece] = deque()
        self._taking = threading.Lock()

    async def run(self) -> None:
        """The first failure ends all workers and is raised."""
        with _threads("transfer", self._width) as threads:
            async with aclosing(windows(self._source)) as plan:
                async for window in plan:
                    self._todo.extend(window)
                    try:
                        async with asyncio.TaskGroup() as workers:
                            for _ in range(min(self._width, len(window))):
                                workers.create_task(self._work(threads))
                    except BaseExceptionGroup as failures:
                        first = failures.exceptions[0]
                        raise first from first.__cause__

    async def _work(self, threads: Threads) -> None:
        while self._todo:
            # The buffer comes before the piece: the lowest piece in flight then always has one, and those that wait for
            # it to be hashed cannot keep it from arriving.
            buffer = await self._buffers.acquire(self._owner)
            piece = _Current()
            try:
                await self._source.read_each(partial(self._take, piece, buffer), partial(self._put, piece), threads)
            except BaseException:
                self._turns.stop()
                raise
            finally:
                self._buffers.release(self._owner, buffer)

    def _take(self, current: _Current, buffer: memoryview) -> tuple[int, memoryview] | None:
        """The next piece to read, in a thread. None when there is none, or when others need the buffer more."""
        while not self._buffers.pressed(self._owner):
            with self._taking:
                if not self._todo:
                    return None
                piece = self._todo.popleft()
            if self._file is not None and self._whole.cover(piece.offset, piece.offset + piece.length):
                self._finish(piece, self._read_back(piece, buffer))
            elif not piece.zero:
                current.piece = piece
                return piece.offset, buffer[: piece.length]
            else:
                if self._file is not None:
                    self._file.zero(piece.offset, piece.length)
                self._finish(piece, zero_views(piece.length))
        return None

    def _read_back(self, piece: Piece, buffer: memoryview) -> Iterator[memoryview]:
        """What the file holds already, in views into `buffer`; zeroes where the source has a hole."""
        if piece.zero:
            yield from zero_views(piece.length)
        elif self._file is not None:
            self._file.read(piece.offset, buffer[: piece.length])
            yield buffer[: piece.length]

    def _put(self, current: _Current, offset: int, view: memoryview) -> None:
        """In a thread."""
        if self._file is not None:
            self._file.write(offset, view)
        assert current.piece is not None
        self._finish(current.piece, iter([view]))

    def _finish(self, piece: Piece, views: Iterator[memoryview]) -> None:
        if self._digester is not None:
            with self._turns.turn(piece.index):
                for view in views:
                    self._digester.update(view)
        self._loop.call_soon_threadsafe(self._tell, piece)

    def _tell(self, piece: Piece) -> None:
        self._progress.advance(piece.length)
        if self._arrived is not None:
            self._arrived(piece.offset, piece.offset + piece.length)


class _Current:
    """The piece that a worker is at."""

    piece: Piece | None = None


@contextmanager
def _threads(name: str, count: int) -> Iterator[Threads]:
    threads = Threads(name, count, bulk=True)
    try:
        yield threads
    finally:
        threads.close()
