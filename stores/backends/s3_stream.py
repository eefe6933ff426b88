"""One object on its way into a bucket in order: a single PUT where it is small, else a multipart upload.

Parts are kept until the server has confirmed them, in memory that all streams of the process share.
"""

from __future__ import annotations

import asyncio
import mmap
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
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
from stores.transfer.outgoing import OUTGOING
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


class S3Stream:
    """A `PendingStream`. Has memory for one part; for others, which are being sent, as far as `Outgoing` has some left."""

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
        self._length = _first_length(size, client.config.single_put)
        self._free: list[memoryview] = []
        self._memory = 0  # bytes of the shared memory that this stream has
        engine.outgoing.take(self._length)
        self._buffer = self._allocated()  # of the part being filled
        self._filled = 0
        self._crc = 0
        self._sent = 0
        self._number = 0
        self._upload_id: str | None = None
        self._sending: set[asyncio.Task[None]] = set()
        self._parts: dict[int, Part] = {}
        self._sums: dict[int, tuple[int, int]] = {}  # CRC and length of each part

    async def write(self, data: memoryview) -> None:
        data = data.cast("B")
        if self._size is not None and self._sent + len(data) > self._size:
            raise self._wrong_size(self._sent + len(data))
        while data:
            if self._filled == len(self._buffer):
                await self._send_part()
                self._buffer = await self._next_buffer()
            piece = data[: len(self._buffer) - self._filled]
            self._buffer[self._filled : self._filled + len(piece)] = piece
            self._crc = crc64nvme(piece, self._crc)
            self._filled += len(piece)
            self._sent += len(piece)
            data = data[len(piece) :]

    async def commit(self) -> ObjectInfo:
        """A cancellation that comes once the object is being published is raised after that was decided either way."""
        if self._size is not None and self._sent != self._size:
            raise self._wrong_size(self._sent)
        if self._upload_id is None and self._sent <= self._client.config.single_put:
            return await uninterrupted(self._put())
        await self._send_part()
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
        self._buffer = memoryview(b"")
        self._free.clear()
        self._engine.outgoing.release(self._memory)
        self._memory = 0

    async def _send_part(self) -> None:
        """Begins to send what is in the buffer."""
        if self._upload_id is None:
            await uninterrupted(self._begin())
        self._number += 1
        self._sums[self._number] = self._crc, self._filled
        task = self.group.create_task(
            self._upload_part(self._number, self._buffer, self._filled, self._crc), name=f"s3 part {self._number}"
        )
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)
        self._buffer = memoryview(b"")
        self._filled = self._crc = 0

    async def _begin(self) -> None:
        self._upload_id = await self._notes.begin()

    async def _next_buffer(self) -> memoryview:
        """Memory for the next part: that of one that was confirmed, or more than before where there is some to spare."""
        length = part_length(self._number + 1, self._size)
        if length > self._length:
            self._length = length
            while self._sending:
                await asyncio.wait(self._sending)
            self.release()
            self._engine.outgoing.take(length)
            return self._allocated()
        while not self._free:
            if self._engine.outgoing.try_take(length):
                return self._allocated()
            await asyncio.wait(self._sending, return_when=asyncio.FIRST_COMPLETED)
        return self._free.pop()

    def _allocated(self) -> memoryview:
        self._memory += self._length
        return memoryview(mmap.mmap(-1, self._length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))

    async def _upload_part(self, number: int, buffer: memoryview, length: int, crc: int) -> None:
        assert self._upload_id is not None
        view = buffer[:length]
        md5 = partial(self._engine.run, md5_of, [view])
        self._parts[number] = await self._sender.part(self._upload_id, number, Views([view]), crc, md5)
        if self._engine.outgoing.pressed and self._memory > self._length:
            self._memory -= self._length
            self._engine.outgoing.release(self._length)
        else:
            self._free.append(buffer)

    async def _put(self) -> ObjectInfo:
        view = self._buffer[: self._filled]

        async def md5() -> str:
            return await self._engine.run(md5_of, [view])

        published = self._publication(self._crc, md5)
        return await published.put(partial(self._sender.whole, Views([view]), self._crc, replace=self._replace))

    async def _complete(self) -> ObjectInfo:
        parts = [self._parts[number] for number in range(1, self._number + 1)]

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


def _first_length(size: int | None, single_put: int) -> int:
    """Memory for the first part; where the object is to be sent by a single request, and fits, for all of it."""
    if size is not None and size <= min(single_put, OUTGOING):
        return max(1, size)
    return part_length(1, size)
