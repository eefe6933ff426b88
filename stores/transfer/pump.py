"""All of one object, past a file, or another place, and digests.

    worker  | take a span: several pieces that one request brings
            | for each piece: take a buffer, receive, write in place ----> give the buffer back
    hasher  '-- where digests are wanted: hash in order ----------------'

A worker does all of it in one thread, while the piece is still in the processor's cache. Its answer waits on the connection
whenever there is no buffer, so that how much is asked for at once and how much memory it takes have nothing to do with
each other.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial

from stores.contract import MiB, Progress, RangeReader
from stores.transfer.buffers import PIECE, BufferPool
from stores.transfer.digests import Digester
from stores.transfer.groups import first_failure
from stores.transfer.inorder import InOrder
from stores.transfer.pieces import Piece, known_size, take_span, windows, zero_views
from stores.transfer.placed import Place, PlacedFile
from stores.transfer.ranges import Ranges
from stores.transfer.supply import Supply
from stores.transfer.threads import StoppingThreads, stopping_threads

WIDTH_LIMIT = 12
"""Most workers of one transfer, whatever its source would bear."""

SPAN = 64 * MiB
"""Most that one request asks for: a server that keeps objects in blocks reads few of them twice, and over a far network
the round trip before each answer costs little beside it. With 16 MiB, of which a mapped image of scattered clusters made
requests of 8, SeaweedFS took 1.4 times the CPU for the same bytes."""

HASHED_SPAN = 4 * MiB
"""The same where digests are wanted: what arrives out of order waits in buffers for its turn, and all spans under way have
to fit in the transfer's share of them."""


class Pump:
    """Reads all of `source` in parallel, in threads of its own: they wait for one another, and in a pool shared with others the
    one that all wait for might not get a thread. The buffers bound the busy threads of all transfers together."""

    def __init__(
        self,
        source: RangeReader,
        *,
        place: Place | None,
        digester: Digester | None,
        buffers: BufferPool,
        progress: Progress,
        kept: PlacedFile | None = None,
        whole: Sequence[tuple[int, int]] = (),
        arrived: Callable[[int, int], None] | None = None,
    ) -> None:
        """Data goes to `place`, where there is one, in any order; everything goes to `digester` in order, holes as zeroes.

        `kept`: that place, where it has some of the content already. `whole` and `arrived`: see `TransferEngine.fetch`.
        """
        self._source = source
        self._place = place
        self._kept = kept
        self._hashed = InOrder(digester) if digester is not None else None
        self._buffers = buffers
        self._progress = progress
        self._whole = Ranges(whole)
        self._tell_arrived = arrived
        self._width = min(source.parallel, WIDTH_LIMIT)
        self._span = (HASHED_SPAN if digester is not None else SPAN) // PIECE
        self._owner: Hashable = object()
        self._loop = asyncio.get_running_loop()
        self._supply = Supply(ordered=digester is not None)
        self._held: dict[int, memoryview] = {}
        useful = self._width * (self._span if digester is not None else 1)
        self._places = asyncio.Semaphore(min(useful, -(-known_size(source) // PIECE)))
        self._todo: deque[Piece] = deque()
        self._claiming = threading.Lock()

    async def run(self) -> None:
        """The first failure ends all workers and is raised."""
        with stopping_threads("transfer", self._width + 1, self._stop) as calls:
            try:
                with first_failure():
                    await self._work(calls)
            finally:
                while self._held:
                    self._release(next(iter(self._held)))

    async def _work(self, calls: StoppingThreads) -> None:
        async with asyncio.TaskGroup() as group:
            supplying = group.create_task(self._supply_buffers())
            if self._hashed is not None:
                group.create_task(calls.run(self._hashed.run))
            async with aclosing(windows(self._source)) as plan:
                async for window in plan:
                    self._todo.extend(self._marked(window))
                    await self._read_window(calls, min(self._width, len(window)))
            if self._hashed is not None:
                self._hashed.end()
            supplying.cancel()

    async def _read_window(self, calls: StoppingThreads, workers: int) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                worker = _Worker(self)
                group.create_task(self._source.read_each(worker.take, worker.put, calls, ahead=worker.ahead))

    def _marked(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            kept = not piece.zero and self._kept is not None
            yield replace(piece, here=kept and self._whole.cover(piece.offset, piece.offset + piece.length))

    def _stop(self) -> None:
        self._supply.stop()
        if self._place is not None:
            self._place.abort()
        if self._hashed is not None:
            self._hashed.stop()

    # ------------------------------------------------------------------------------------------- on the event loop

    async def _supply_buffers(self) -> None:
        """As many buffers as are of use, as soon as others leave them to us."""
        while True:
            await self._places.acquire()
            buffer = await self._buffers.acquire(self._owner)
            self._held[id(buffer)] = buffer
            self._supply.add(buffer)

    def _give_back(self, key: int) -> None:
        if key in self._held:  # else the transfer has ended meanwhile, and given back everything
            self._release(key)
            self._places.release()

    def _release(self, key: int) -> None:
        self._buffers.release(self._owner, self._held.pop(key))

    # ------------------------------------------------------------------------------------------------- in threads

    def claim(self) -> deque[Piece]:
        """The next span; empty at the end. What needs no reader is done on the way: holes, and what the file holds already."""
        while True:
            with self._claiming:
                if not self._todo:
                    return deque()
                span = take_span(self._todo, workers=self._width, limit=self._span)
            if span[0].here:
                self._read_back(span[0])
            elif span[0].zero:
                self.pass_over(span[0])
            else:
                return span

    def pass_over(self, hole: Piece) -> None:
        if self._place is not None:
            self._place.zero(hole.offset, hole.length)
        self._hash(hole, zero_views(hole.length), None)

    def _read_back(self, piece: Piece) -> None:
        """`piece` is in the file; only a digest needs it once more."""
        if self._hashed is None or self._kept is None:
            self._finish(piece, None)
            return
        buffer = self.buffer_for(piece)
        self._kept.read(piece.offset, buffer[: piece.length])
        self._hash(piece, iter([buffer[: piece.length]]), buffer)

    def buffer_for(self, piece: Piece) -> memoryview:
        return self._supply.take(piece.index)

    def arrived(self, piece: Piece, buffer: memoryview) -> bool:
        """`piece` is at the beginning of `buffer`. Whether the worker keeps the buffer: without a digest it does, unless others
        are in need of it, so that it goes on with its span and no other thread has to wake."""
        if self._place is not None:
            self._place.write(piece.offset, buffer[: piece.length])
        kept = self._hashed is None and not self._buffers.pressed(self._owner)
        if kept:
            self._loop.call_soon_threadsafe(self._tell, piece)
        else:
            self._hash(piece, iter([buffer[: piece.length]]), buffer)
        return kept

    def give_up(self, piece: Piece, buffer: memoryview | None) -> None:
        """`piece` needs its buffer no more, where it had one."""
        kept = self._supply.give(piece.index, buffer, pressed=self._buffers.pressed(self._owner))
        if not kept:
            self._loop.call_soon_threadsafe(self._give_back, id(buffer))

    def _hash(self, piece: Piece, views: Iterator[memoryview], buffer: memoryview | None) -> None:
        if self._hashed is None:
            self._finish(piece, buffer)
        else:
            self._hashed.submit(piece.index, views, partial(self._finish, piece, buffer))

    def _finish(self, piece: Piece, buffer: memoryview | None) -> None:
        self.give_up(piece, buffer)
        self._loop.call_soon_threadsafe(self._tell, piece)

    def _tell(self, piece: Piece) -> None:
        self._progress.advance(piece.length)
        if self._tell_arrived is not None:
            self._tell_arrived(piece.offset, piece.offset + piece.length)


class _Worker:
    """One reader's way through its spans: the arguments of `RangeReader.read_each`."""

    def __init__(self, pump: Pump) -> None:
        self._pump = pump
        self._span: deque[Piece] = deque()
        self._present: tuple[Piece, memoryview] | None = None  # also after its arrival, as long as the buffer is kept

    def take(self) -> tuple[int, memoryview] | None:
        kept = self._present
        self._span = self._span or self._pump.claim()
        if not self._span:
            if kept is not None:
                self._pump.give_up(*kept)
            return None
        while self._span[0].zero:
            self._pump.pass_over(self._span.popleft())
        piece = self._span.popleft()
        buffer = kept[1] if kept is not None else self._pump.buffer_for(piece)
        self._present = piece, buffer
        return piece.offset, buffer[: piece.length]

    def put(self, offset: int, view: memoryview) -> None:
        assert self._present is not None
        if not self._pump.arrived(*self._present):
            self._present = None

    def ahead(self) -> Iterator[tuple[int, int]]:
        return ((piece.offset, piece.length) for piece in self._span if not piece.zero)
