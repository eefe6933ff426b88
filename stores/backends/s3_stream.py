"""One object on its way into a bucket in order: a single PUT where it is small, else a multipart upload.

Parts are kept until the server has confirmed them, in memory that all streams of the process share.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import structlog

from stores.backends.s3_client import S3Client
from stores.backends.s3_notes import Notes
from stores.backends.s3_publish import Publication, look, taken
from stores.backends.s3_send import Part, Sender
from stores.backends.s3_sums import crc64nvme, joined_crc, md5_of, multipart_etag, part_length
from stores.contract import Kind, ObjectInfo
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
) -> AsyncIterator[S3Stream]:
    """An upload of `ref`, aborted on leaving without commit. A part that fails cancels the body of the context at once."""
    if not replace and await look(client, ref) is not None:
        raise taken(ref)
    await client.get()  # loads what the checksums need
    stream = S3Stream(client, engine, sender, ref, token=token, size=size, replace=replace)
    try:
        with first_failure():
            async with asyncio.TaskGroup() as group:
                stream.group = group
                yield stream
                stream.stop()
    finally:
        await uninterrupted(stream.abort())
        stream.release()


@dataclass(slots=True)
class _Filling:
    """A part of which rooms are given, or may be."""

    number: int
    buffer: memoryview
    given: int = 0
    filled: int = 0
    followed: bool = False  # the object goes on behind it

    @property
    def content(self) -> memoryview:
        return self.buffer[: self.filled]

    @property
    def ready(self) -> bool:
        return self.followed and self.filled == len(self.buffer)


class S3Stream:
    """A `PendingStream` whose rooms are pieces of its parts. It has memory for one part; for others, which are being filled or
    sent, as far as `Outgoing` has some left."""

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
    ) -> None:
        self.group: asyncio.TaskGroup
        self._client = client
        self._engine = engine
        self._sender = sender
        self._ref = ref
        self._notes = Notes(client, ref, token)
        self._size = size
        self._replace = replace
        self._memory = Share(engine.outgoing)
        self._filling: deque[_Filling] = deque()
        self._given = 0  # bytes of all rooms
        self._sent = 0  # bytes of those that were filled
        self._upload_id: str | None = None
        self._last = 0  # number of the last part that was or is being sent
        self._sending: set[asyncio.Task[None]] = set()
        self._parts: dict[int, Part] = {}
        self._sums: dict[int, tuple[int, int]] = {}  # CRC and length of each part

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
                self._send_ready()
            last = await self._next_part()
        room = last.buffer[last.given :][:most]
        last.given += len(room)
        self._given += len(room)
        return room

    async def filled(self, room: memoryview) -> None:
        self._filling[0].filled += len(room)
        self._sent += len(room)
        self._send_ready()

    async def commit(self) -> ObjectInfo:
        """A cancellation that comes once the object is being published is raised after that was decided either way."""
        if self._size is not None and self._sent != self._size:
            raise self._wrong_size(self._sent)
        if not self._last and self._sent <= self._client.config.single_put:
            return await uninterrupted(self._put())
        await self._begin()
        for part in self._filling:
            if part.filled:
                self._send(part)
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

    def release(self) -> None:
        """Gives back all memory. Nothing is being sent any more."""
        self._filling.clear()
        self._memory.close()

    async def _next_part(self) -> _Filling:
        number = self._filling[-1].number + 1 if self._filling else self._last + 1
        small = min(self._client.config.single_put, self._engine.outgoing.left)
        buffer = await self._memory.take(_memory_of(number, self._size, small))
        self._filling.append(_Filling(number, buffer))
        return self._filling[-1]

    def _send_ready(self) -> None:
        while self._filling and self._filling[0].ready:
            self._send(self._filling.popleft())

    def _send(self, part: _Filling) -> None:
        """Begins to send it."""
        self._last = part.number
        task = self.group.create_task(self._upload_part(part), name=f"s3 part {part.number}")
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


def _memory_of(number: int, size: int | None, small: int) -> int:
    """Memory for part `number` of an object of `size` bytes; for all of it, where it has at most `small`."""
    if size is None:
        return part_length(number, size)
    return max(1, size if size <= small else min(size, part_length(number, size)))
