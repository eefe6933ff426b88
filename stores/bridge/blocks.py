"""The blocks of an object that are in memory: a small bounded cache in front of a `RangeReader`.

What is remembered is *runs*: consecutive pages. A random request gets the pages it touches and no more; a sequential one gets
runs of `RUN` bytes, several of which come with one request to the store, each of use as soon as it is there. A page is in
at most one run, so that nothing is read twice at once.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Self

from stores.contract import KiB, MiB, RangeReader
from stores.errors import StoreError
from stores.transfer.threads import Threads

PAGE = 64 * KiB
"""What the smallest read of the object fetches: a cluster of qcow2, and cheap beside a round trip."""
RUN = 1 * MiB
"""What a sequential read remembers and forgets as one."""
SPAN = 8 * MiB
"""Most that is asked of the store at once: beside it a round trip costs little, and servers that keep objects in blocks of a
few MiB read few of them twice."""


class Memory:
    """Bytes of objects that all exports of a process may hold together: each open one has an equal share."""

    LEAST = 4 * RUN
    """The smallest share: below it an export would not get on. More exports than that allows go beyond the sum."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._users = 0

    @property
    def share(self) -> int:
        return max(self.LEAST, self._total // max(1, self._users))

    @contextmanager
    def used(self) -> Iterator[None]:
        """Somebody takes a share; those of the others shrink, as soon as what they hold is no longer in use."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1


class _Run:
    """Consecutive pages, being loaded or loaded."""

    __slots__ = ("buffer", "ended", "error", "fresh", "loaded", "pins", "served", "start", "stop")

    def __init__(self, start: int, stop: int, buffer: bytearray) -> None:
        self.start = start
        self.stop = stop
        self.buffer = buffer  # at least `stop - start` long
        self.loaded = asyncio.Event()
        self.error: StoreError | None = None
        self.pins = 0
        self.fresh = True  # nobody has used it yet: it was begun for later
        self.served = 0  # bytes that sequential readers got of it, some perhaps twice
        self.ended = False  # its last byte was among them

    @property
    def pages(self) -> range:
        return range(self.start // PAGE, -(-self.stop // PAGE))


class BlockCache:
    """Runs of one object, as many as its share of `memory` holds, counting what is being loaded and what is being sent.

    Loads are tasks of the cache, in threads of its own: a load goes on when the request that began it is cancelled, for others
    may have joined it. The cache is therefore a context; loads under way at its end are cancelled.
    """

    def __init__(self, reader: RangeReader, size: int, memory: Memory) -> None:
        self._reader = reader
        self._size = size
        self._loads = asyncio.TaskGroup()
        self._threads = Threads("nbd-load", reader.parallel, bulk=True)
        self._memory = memory
        self._used = 0
        self._runs: dict[int, _Run] = {}  # by page
        self._idle: OrderedDict[_Run, None] = OrderedDict()  # loaded and not pinned, least recently used first
        self._spare: list[bytearray] = []  # buffers of RUN bytes: reuse saves clearing and faulting them in
        self._room = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self._loads.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._loads.__aexit__(kind, error, trace)
        finally:
            self._threads.close()

    @asynccontextmanager
    async def pinned(self, offset: int, length: int, *, sequential: bool) -> AsyncIterator[memoryview]:
        """Some of the object's bytes from `offset`: at least one, at most `length`. They stay until the context ends.

        Waits for memory where everything is in use. Raises what the reader raised.
        """
        run = await self._obtain(offset, offset + length, sequential)
        try:
            await run.loaded.wait()
            if run.error is not None:
                raise run.error
            stop = min(run.stop, offset + length)
            with memoryview(run.buffer) as whole, whole[offset - run.start : stop - run.start] as view:
                yield view
            if sequential:
                run.served += stop - offset
                run.ended = run.ended or stop == run.stop
        finally:
            self._unpin(run)

    def begin(self, offset: int, stop: int, *, sequential: bool) -> None:
        """Start to load that range for later, as far as memory allows: it takes none from what was begun before."""
        stop = min(stop, self._size)
        span: list[_Run] = []
        while offset < stop:
            run = self._runs.get(offset // PAGE)
            if run is None:
                run = self._reserve(offset, stop, sequential, for_later=True)
                if run is None:
                    break
                if span and (run.start != span[-1].stop or run.stop - span[0].start > SPAN):
                    self._load(span)
                    span = []
                span.append(run)
            offset = run.stop
        if span:
            self._load(span)

    async def _obtain(self, offset: int, stop: int, sequential: bool) -> _Run:
        """The run at `offset`, pinned, perhaps still being loaded."""
        while True:
            run = self._runs.get(offset // PAGE)
            if run is None:
                run = self._reserve(offset, stop, sequential, for_later=False)
                if run is not None:
                    self._load([run])
            if run is not None:
                run.pins += 1
                run.fresh = False
                self._idle.pop(run, None)
                return run
            self._room.clear()
            await self._room.wait()

    def _reserve(self, offset: int, stop: int, sequential: bool, *, for_later: bool) -> _Run | None:
        """A new run that begins with the page of `offset`, to be loaded; None if there is no memory for it now."""
        first = offset // PAGE
        border = first * PAGE // RUN * RUN + RUN
        end = min(border, self._size)
        if not sequential:
            end = min(end, -(-stop // PAGE) * PAGE)
        last = first + 1
        while last * PAGE < end and last not in self._runs:
            last += 1
        end = min(end, last * PAGE)
        buffer = self._buffer(end - first * PAGE, for_later)
        if buffer is None:
            return None
        run = _Run(first * PAGE, end, buffer)
        for page in run.pages:
            self._runs[page] = run
        return run

    def _load(self, span: Sequence[_Run]) -> None:
        self._loads.create_task(self._fill(span), name="nbd-load")

    async def _fill(self, span: Sequence[_Run]) -> None:
        """Loads consecutive runs with one request, if the store's reader can."""
        loop = asyncio.get_running_loop()
        left = iter(span)
        present = span[0]
        arrived: set[_Run] = set()

        def take() -> tuple[int, memoryview] | None:
            nonlocal present
            run = next(left, None)
            if run is None:
                return None
            present = run
            return run.start, memoryview(run.buffer)[: run.stop - run.start]

        def put(offset: int, view: memoryview) -> None:
            arrived.add(present)
            loop.call_soon_threadsafe(self._loaded, present)

        def ahead() -> Iterator[tuple[int, int]]:
            yield present.stop, span[-1].stop - present.stop

        try:
            await self._reader.read_each(take, put, self._threads, ahead=ahead)
        except StoreError as error:
            for run in span:
                if run not in arrived:
                    run.error = error
                    self._forget(run)  # so that the next request tries again
                    self._loaded(run)

    def _loaded(self, run: _Run) -> None:
        run.loaded.set()
        if not run.pins:
            self._rest(run)

    def _unpin(self, run: _Run) -> None:
        run.pins -= 1
        if not run.pins and run.loaded.is_set():
            self._rest(run)

    def _rest(self, run: _Run) -> None:
        """Nobody uses the run now."""
        if run.error is not None:
            self._free(run)
        elif (
            run.ended and run.served >= run.stop - run.start
        ):  # a sequential reader does not come back to what it has had
            self._forget(run)
            self._free(run)
        else:
            self._idle[run] = None
        self._room.set()

    # -------------------------------------------------------------------------------------------------- memory

    def _buffer(self, length: int, for_later: bool) -> bytearray | None:
        """Memory for a run, of the least recently used ones. What was begun for later is not given up for more of it."""
        while self._used + length > self._memory.share:
            victim = next(iter(self._idle), None)
            if victim is None or (for_later and victim.fresh):
                return None
            del self._idle[victim]
            self._forget(victim)
            self._free(victim)
        self._used += length
        if length == RUN and self._spare:
            return self._spare.pop()
        while self._spare and self._used + len(self._spare) * RUN > self._memory.share:
            self._spare.pop()
        return bytearray(length)

    def _forget(self, run: _Run) -> None:
        for page in run.pages:
            del self._runs[page]

    def _free(self, run: _Run) -> None:
        self._used -= len(run.buffer)
        if len(run.buffer) == RUN:
            self._spare.append(run.buffer)
