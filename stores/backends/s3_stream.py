"""One object on its way into a bucket in order: a single PUT where it is small, else a multipart upload.

Parts are kept until the server has confirmed them, in memory that all streams of the process share; those that are larger than
that pass through it (`LargePart`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import structlog

from stores.backends.s3_client import S3Client
from stores.backends.s3_large import LARGE_AT_ONCE, LargePart
from stores.backends.s3_notes import Notes
from stores.backends.s3_parts import Cut
from stores.backends.s3_publish import Publication, look, taken
from stores.backends.s3_send import Part, Sender
from stores.backends.s3_sums import crc64nvme, joined_crc, md5_of, multipart_etag
from stores.contract import Kind, ObjectInfo, RangeReader
from stores.errors import IntegrityError, StoreError
from stores.transfer.engine import TransferEngine
from stores.transfer.groups import first_failure
from stores.transfer.outgoing import Share
from stores.transfer.put import Views
from stores.uninterrupted import uninterrupted

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def streaming(
    client: S3Client,
    engine: TransferEngine,
    sender: Sender,
    ref: str,
    *,
    token: str,
    size: int | None,
    replace: bool,
    cut: Cut,
) -> AsyncIterator[S3Stream]:
    """An upload of `ref`, aborted on leaving without commit. A part that fails cancels the body of the context at once."""
    if not replace and await look(client, ref) is not None:
        raise taken(ref)
    await client.get()  # loads what the checksums need
    stream = S3Stream(client, engine, sender, ref, token=token, size=size, replace=replace, cut=cut)
    try:
        with first_failure():
            async with asyncio.TaskGroup() as group:
                stream.group = group
                yield stream
                stream.stop()
    finally:
        await uninterrupted(stream.abort())
        await uninterrupted(stream.release())


@dataclass(slots=True)
class _Filling:
    """Memory of which rooms are given, or may be: for a part, or for a piece of a large one."""

    number: int
    buffer: memoryview
    given: int = 0
    filled: int = 0
    followed: bool = False  # the object goes on behind it
    large: LargePart | None = None

    @property
    def content(self) -> memoryview:
        return self.buffer[: self.filled]

    @property
    def ready(self) -> bool:
        return self.followed and self.filled == len(self.buffer)


class S3Stream:
    """A `PendingStream` whose rooms are pieces of its parts. It has memory for one part of `Cut.smallest`; for others, which
    are being filled or sent, as far as `Outgoing` has some left.

    Parts that have to be longer, so that they suffice for the object, take no more of it. They pass through it for their
    checksum, and are then sent from the source (`rereads`) or, where there is none, from a file without a name. They cannot be
    sent while they pass: S3 wants to know the length and the checksum before the first byte, and not every server takes a
    checksum behind the last."""

    kind: ClassVar[Kind] = Kind.BYTE_STREAM

    def __init__(
        self,
        client: S3Client,
        engine: TransferEngine,
        sender: Sender,
        ref: str,
        *,
        token: str,
        size: int | None,
        replace: bool,
        cut: Cut,
    ) -> None:
        self.group: asyncio.TaskGroup
        self._client = client
        self._engine = engine
        self._sender = sender
        self._ref = ref
        self._notes = Notes(client, ref, token)
        self._size = size
        self._replace = replace
        self._cut = cut
        self._source: RangeReader | None = None
        self._memory = Share(engine.outgoing)
        self._filling: deque[_Filling] = deque()
        self._given = 0  # bytes of all rooms
        self._sent = 0  # bytes of those that were filled
        self._upload_id: str | None = None
        self._number = 0  # of the last part that has memory
        self._part_end = 0  # the byte of the object behind it
        self._begun: LargePart | None = None  # that part, if it is large
        self._last = 0  # number of the last part that was or is being sent
        self._sending: set[asyncio.Task[None]] = set()
        self._parts: dict[int, Part] = {}
        self._sums: dict[int, tuple[int, int]] = {}  # CRC and length of each part
        self._passing = asyncio.Lock()
        self._large: set[LargePart] = set()  # filled or being sent
        self._large_turns = asyncio.Semaphore(LARGE_AT_ONCE)

    def rereads(self, source: RangeReader) -> None:
        self._source = source

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
        self._filling[0].filled += len(room)
        self._sent += len(room)
        await self._pass_ready()

    async def commit(self) -> ObjectInfo:
        """A cancellation that comes once the object is being published is raised after that was decided either way."""
        if self._size is not None and self._sent != self._size:
            raise self._wrong_size(self._sent)
        if not self._last and self._sent <= self._client.config.single_put:
            return await uninterrupted(self._put())
        await self._begin()
        for part in self._filling:
            if part.filled:
                await self._pass(part)
        for large in self._large:
            if 0 < large.filled < large.length:
                self._send(large.number, self._upload_large(large))
        while self._sending:
            await asyncio.wait(self._sending)
        return await uninterrupted(self._complete())

    def stop(self) -> None:
        """Give up what is being sent."""
        for task in self._sending:
            task.cancel()

    async def abort(self) -> None:
        """Remove the parts and the note about them. Failing to is logged: the note stays for `discard`."""
        upload_id, self._upload_id = self._upload_id, None
        if upload_id is None:
            return
        try:
            await self._notes.remove(upload_id)
        except StoreError as error:
            _log.warning("multipart upload was not aborted", ref=self._ref, error=error.message)

    async def release(self) -> None:
        """Gives back all memory, and what is kept on a disk. Nothing is being sent any more."""
        self._filling.clear()
        self._memory.close()
        for large in self._large:
            await large.close()
        self._large.clear()

    async def _next(self) -> _Filling:
        """Memory for what follows."""
        small = min(self._client.config.single_put, self._engine.outgoing.left)
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
            self._begun = LargePart(self._engine, self._number, self._given, length, self._source)
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
        task = self.group.create_task(upload, name=f"s3 part {number}")
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _upload_part(self, part: _Filling) -> None:
        view = part.content
        crc = await self._engine.run(crc64nvme, view)
        self._sums[part.number] = crc, len(view)
        assert self._upload_id is not None
        md5 = partial(self._engine.run, md5_of, [view])
        self._parts[part.number] = await self._sender.part(self._upload_id, part.number, Views([view]), crc, md5)
        self._memory.give(part.buffer)

    async def _upload_large(self, part: LargePart) -> None:
        self._sums[part.number] = part.crc, part.filled
        assert self._upload_id is not None
        self._parts[part.number] = await part.send(self._sender, self._upload_id)
        await part.close()
        self._large.discard(part)
        self._large_turns.release()

    async def _begin(self) -> None:
        """The multipart upload, unless there is one."""

        async def begun() -> None:
            self._upload_id = await self._notes.begin()

        if self._upload_id is None:
            await uninterrupted(begun())

    async def _put(self) -> ObjectInfo:
        view = self._filling[0].content if self._filling else memoryview(b"")
        crc = await self._engine.run(crc64nvme, view)

        async def md5() -> str:
            return await self._engine.run(md5_of, [view])

        published = self._publication(crc, md5)
        return await published.put(partial(self._sender.whole, Views([view]), crc, replace=self._replace))

    async def _complete(self) -> ObjectInfo:
        parts = [self._parts[number] for number in range(1, self._last + 1)]

        async def etag() -> str | None:
            return multipart_etag([part.etag for part in parts])

        crc = joined_crc([self._sums[part.number] for part in parts])
        assert self._upload_id is not None
        info = await self._publication(crc, etag).complete(self._upload_id, parts)
        self._upload_id = None
        try:
            await self._notes.forget()
        except StoreError as error:
            _log.warning("note about a finished upload was not removed", ref=self._ref, error=error.message)
        return info

    def _publication(self, crc: int, etag: Callable[[], Awaitable[str | None]]) -> Publication:
        return Publication(self._client, self._ref, size=self._sent, crc=crc, etag=etag, replace=self._replace)

    def _wrong_size(self, seen: int) -> IntegrityError:
        return IntegrityError(
            f"{self._ref}: {self._size} bytes were announced and {seen} were written",
            ref=self._ref,
            needed=self._size,
            seen=seen,
        )
