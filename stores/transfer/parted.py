"""One object on its way into a store in order: a single request where it is small, else in parts.

Parts are kept until the server has confirmed them, in memory that all streams of the process share; those that are larger than
that pass through it. What a part is to a server, and how the parts become the object, is for a `PartedObject`.
"""

from __future__ import annotations

import abc
import asyncio
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import ClassVar, Protocol

import structlog

from stores.contract import Kind, ObjectInfo, RangeReader
from stores.errors import IntegrityError
from stores.transfer.groups import first_failure
from stores.transfer.outgoing import Outgoing, Share
from stores.uninterrupted import uninterrupted

LARGE_AT_ONCE = 2
"""Large parts of one stream that are in work at once: one is filled while another is sent. Those of a source that cannot be
read again take so much room on a disk."""

ABORT_S = 60.0
"""For removing what was begun and is no object: a store that is away does not keep whoever gave up. What is left there then is
removed by its token (`DataStore.discard`)."""

_log = structlog.get_logger(__name__)


class Cutting(Protocol):
    """How a stream is cut into parts. Bytes."""

    @property
    def smallest(self) -> int:
        """Longer parts than this are not kept in memory."""
        ...

    @property
    def piece(self) -> int:
        """In pieces of this length longer parts pass through the memory."""
        ...

    def length(self, number: int, size: int | None) -> int:
        """Of part `number` (from 1) of an object of `size` bytes; None: not known. `TooLarge` beyond what there can be."""
        ...


class Large(Protocol):
    """A part that is larger than the memory there is for it."""

    number: int
    length: int
    filled: int

    @property
    def whole(self) -> bool: ...

    async def pass_through(self, view: memoryview) -> None:
        """The next bytes of it, in order; they need not be kept when this returns."""
        ...

    async def send(self) -> None:
        """The server has confirmed it when this returns."""
        ...

    async def close(self) -> None:
        """Nothing of it is kept on this host any more. Idempotent."""
        ...


class PartedObject(abc.ABC):
    """The object as its server sees it coming. Errors are of `stores.errors`."""

    single: int
    """Largest object in bytes that is sent by a single request."""

    @abc.abstractmethod
    async def begin(self) -> None:
        """Before the first part, once. Not interrupted."""

    @abc.abstractmethod
    async def part(self, number: int, view: memoryview) -> None:
        """Sends that part; the server has confirmed it when this returns. Many may be under way."""

    def large(self, number: int, start: int, length: int, source: RangeReader | None) -> Large:
        """A part that begins at byte `start` of the object and has at most `length`; with `source`, which is the whole object,
        it can be read again. Asked for only where the cut has parts beyond its smallest."""
        raise AssertionError("this server's parts are all kept in memory")

    @abc.abstractmethod
    async def put(self, view: memoryview) -> ObjectInfo:
        """Makes `view` the object, and has it confirmed. Not interrupted."""

    @abc.abstractmethod
    async def complete(self, count: int, size: int) -> ObjectInfo:
        """Makes parts 1 to `count`, which have `size` bytes in all, the object, and has it confirmed. Not interrupted."""

    @abc.abstractmethod
    async def abort(self) -> None:
        """Removes what was begun and is no object. Idempotent. Raises no `StoreError`: it logs them."""


@asynccontextmanager
async def parted(
    target: PartedObject, outgoing: Outgoing, ref: str, *, size: int | None, cut: Cutting
) -> AsyncIterator[PartedStream]:
    """A stream into `target`, which is aborted on leaving without commit. A part that fails cancels the body of the context at
    once."""
    stream = PartedStream(target, outgoing, ref, size=size, cut=cut)
    try:
        with first_failure():
            async with asyncio.TaskGroup() as group:
                stream.group = group
                yield stream
                stream.stop()
    finally:
        await uninterrupted(_aborted(target, ref))
        await uninterrupted(stream.release())


async def _aborted(target: PartedObject, ref: str) -> None:
    try:
        async with asyncio.timeout(ABORT_S):
            await target.abort()
    except TimeoutError:
        _log.warning("what was begun is left in the store", ref=ref, why=f"the store took more than {ABORT_S:g} s")


@dataclass(slots=True)
class _Filling:
    """Memory of which rooms are given, or may be: for a part, or for a piece of a large one."""

    number: int
    buffer: memoryview
    given: int = 0
    filled: int = 0
    followed: bool = False  # the object goes on behind it
    large: Large | None = None

    @property
    def content(self) -> memoryview:
        return self.buffer[: self.filled]

    @property
    def ready(self) -> bool:
        return self.followed and self.filled == len(self.buffer)


class PartedStream:
    """A `PendingStream` whose rooms are pieces of its parts. It has memory for one part of `Cut.smallest`; for others, which
    are being filled or sent, as far as `Outgoing` has some left.

    Parts that have to be longer, so that they suffice for the object, take no more of it: they pass through it, and are then
    sent from the source (`rereads`) or, where there is none, from where they are kept (`Large`)."""

    kind: ClassVar[Kind] = Kind.BYTE_STREAM

    def __init__(self, target: PartedObject, outgoing: Outgoing, ref: str, *, size: int | None, cut: Cutting) -> None:
        self.group: asyncio.TaskGroup
        self._target = target
        self._outgoing = outgoing
        self._ref = ref
        self._size = size
        self._whole = size  # as far as it is known
        self._cut = cut
        self._source: RangeReader | None = None
        self._memory = Share(outgoing)
        self._filling: deque[_Filling] = deque()
        self._given = 0  # bytes of all rooms
        self._sent = 0  # bytes of those that were filled
        self._is_begun = False
        self._number = 0  # of the last part that has memory
        self._part_end = 0  # the byte of the object behind it
        self._begun: Large | None = None  # that part, if it is large
        self._last = 0  # number of the last part that was or is being sent
        self._sending: set[asyncio.Task[None]] = set()
        self._passing = asyncio.Lock()
        self._large: set[Large] = set()  # filled or being sent
        self._large_turns = asyncio.Semaphore(LARGE_AT_ONCE)

    def rereads(self, source: RangeReader) -> None:
        self._source = source
        self._whole = source.info.size

    async def write(self, data: memoryview) -> None:
        data = data.cast("B")
        while data:
            room = await self.room(len(data))
            room[:] = data[: len(room)]
            await self.filled(room)
            data = data[len(room) :]

    async def room(self, most: int) -> memoryview:
        if self._size is not None and self._given + most > self._size:
            raise self._wrong_size(self._given + most)
        last = self._filling[-1] if self._filling else None
        if last is None or last.given == len(last.buffer):
            if last is not None:
                await self._begin()
                last.followed = True
                await self._pass_ready()
            last = await self._next()
        room = last.buffer[last.given :][:most]
        last.given += len(room)
        self._given += len(room)
        return room

    async def filled(self, room: memoryview) -> None:
        """With the last room of an object whose size is known, all parts are confirmed when this returns."""
        self._filling[0].filled += len(room)
        self._sent += len(room)
        await self._pass_ready()
        if self._sent == self._whole and not self._goes_at_once:
            await self._send_rest()

    async def commit(self) -> ObjectInfo:
        """A cancellation that comes once the object is being published is raised after that was decided either way."""
        if self._size is not None and self._sent != self._size:
            raise self._wrong_size(self._sent)
        if self._goes_at_once:
            content = self._filling[0].content if self._filling else memoryview(b"")
            return await uninterrupted(self._target.put(content))
        await self._send_rest()
        return await uninterrupted(self._target.complete(self._last, self._sent))

    def stop(self) -> None:
        """Give up what is being sent."""
        for task in self._sending:
            task.cancel()

    async def release(self) -> None:
        """Gives back all memory, and what is kept on a disk. Nothing is being sent any more."""
        self._filling.clear()
        self._memory.close()
        for large in self._large:
            await large.close()
        self._large.clear()

    @property
    def _goes_at_once(self) -> bool:
        """All of it, by a single request."""
        return not self._last and self._sent <= self._target.single

    async def _send_rest(self) -> None:
        """All that was filled is confirmed. Idempotent."""
        await self._begin()
        while self._filling:
            part = self._filling.popleft()
            if part.filled:
                await self._pass(part)
        for large in self._large:
            if 0 < large.filled < large.length:
                self._send(large.number, self._upload_large(large))
        while self._sending:
            await asyncio.wait(self._sending)

    async def _next(self) -> _Filling:
        """Memory for what follows."""
        small = min(self._target.single, self._outgoing.left)
        if not self._number and self._size is not None and self._size <= small:
            length = self._size  # all of it, to be sent by one request
            self._number = 1
        else:
            if self._given == self._part_end:
                await self._begin_part()
            length = self._cut.piece if self._begun else min(self._cut.smallest, self._size or self._cut.smallest)
        buffer = await self._memory.take(max(1, length))
        self._filling.append(_Filling(self._number, buffer, large=self._begun))
        return self._filling[-1]

    async def _begin_part(self) -> None:
        self._number += 1
        length = self._cut.length(self._number, self._size)
        self._begun = None
        if length > self._cut.smallest:
            await self._large_turns.acquire()
            self._begun = self._target.large(self._number, self._given, length, self._source)
            self._large.add(self._begun)
        self._part_end = self._given + length

    async def _pass_ready(self) -> None:
        async with self._passing:  # the pieces of a part in order
            while self._filling and self._filling[0].ready:
                await self._pass(self._filling.popleft())

    async def _pass(self, filling: _Filling) -> None:
        """On, towards the server."""
        large = filling.large
        if large is None:
            self._send(filling.number, self._upload_part(filling))
            return
        await large.pass_through(filling.content)
        self._memory.give(filling.buffer)
        if large.whole:
            self._send(large.number, self._upload_large(large))

    def _send(self, number: int, upload: Coroutine[None, None, None]) -> None:
        """Begins to send a part."""
        self._last = number
        task = self.group.create_task(upload, name=f"part {number}")
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _upload_part(self, part: _Filling) -> None:
        await self._target.part(part.number, part.content)
        self._memory.give(part.buffer)

    async def _upload_large(self, part: Large) -> None:
        await part.send()
        await part.close()
        self._large.discard(part)
        self._large_turns.release()

    async def _begin(self) -> None:
        """Parts will follow."""
        if not self._is_begun:
            await uninterrupted(self._target.begin())
            self._is_begun = True

    def _wrong_size(self, seen: int) -> IntegrityError:
        return IntegrityError(
            f"{self._ref}: {self._size} bytes were announced and {seen} were written",
            ref=self._ref,
            needed=self._size,
            seen=seen,
        )
