"""One object on its way into a bucket in order: a single PUT where it is small, else a multipart upload."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import structlog

from stores.backends.s3_client import S3Client
from stores.backends.s3_large import LargePart
from stores.backends.s3_notes import Notes
from stores.backends.s3_parts import Cut
from stores.backends.s3_publish import Publication, look, taken
from stores.backends.s3_send import Part, Sender
from stores.backends.s3_sums import crc64nvme, joined_crc, md5_of, multipart_etag
from stores.contract import ObjectInfo, RangeReader
from stores.errors import StoreError
from stores.transfer.engine import TransferEngine
from stores.transfer.parted import Large, PartedObject, PartedStream, parted
from stores.transfer.put import Views

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
) -> AsyncIterator[PartedStream]:
    """An upload of `ref`, aborted on leaving without commit. A part that fails cancels the body of the context at once."""
    if not replace and await look(client, ref) is not None:
        raise taken(ref)
    await client.get()  # loads what the checksums need
    target = MultipartUpload(client, engine, sender, ref, token=token, replace=replace)
    async with parted(target, engine.outgoing, ref, size=size, cut=cut) as stream:
        yield stream


class MultipartUpload(PartedObject):
    """Large parts pass through the memory for their checksum, and are sent afterwards: S3 wants to know the length and the
    checksum before the first byte, and not every server takes a checksum behind the last."""

    def __init__(
        self, client: S3Client, engine: TransferEngine, sender: Sender, ref: str, *, token: str, replace: bool
    ) -> None:
        self.single = client.config.single_put
        self._client = client
        self._engine = engine
        self._sender = sender
        self._ref = ref
        self._notes = Notes(client, ref, token)
        self._replace = replace
        self._upload_id: str | None = None
        self._parts: dict[int, Part] = {}
        self._sums: dict[int, tuple[int, int]] = {}  # CRC and length of each part

    async def begin(self) -> None:
        self._upload_id = await self._notes.begin()

    async def part(self, number: int, view: memoryview) -> None:
        crc = await self._engine.run(crc64nvme, view)
        self._sums[number] = crc, len(view)
        assert self._upload_id is not None
        md5 = partial(self._engine.run, md5_of, [view])
        self._parts[number] = await self._sender.part(self._upload_id, number, Views([view]), crc, md5)

    def large(self, number: int, start: int, length: int, source: RangeReader | None) -> Large:
        return LargePart(self._engine, number, start, length, source, self._send_large)

    async def put(self, view: memoryview) -> ObjectInfo:
        crc = await self._engine.run(crc64nvme, view)

        async def md5() -> str:
            return await self._engine.run(md5_of, [view])

        published = self._publication(len(view), crc, md5)
        return await published.put(partial(self._sender.whole, Views([view]), crc, replace=self._replace))

    async def complete(self, count: int, size: int) -> ObjectInfo:
        parts = [self._parts[number] for number in range(1, count + 1)]

        async def etag() -> str | None:
            return multipart_etag([part.etag for part in parts])

        crc = joined_crc([self._sums[part.number] for part in parts])
        assert self._upload_id is not None
        info = await self._publication(size, crc, etag).complete(self._upload_id, parts)
        self._upload_id = None
        try:
            await self._notes.forget()
        except StoreError as error:
            _log.warning("note about a finished upload was not removed", ref=self._ref, error=error.message)
        return info

    async def abort(self) -> None:
        """Removes the parts and the note about them. Where that fails, the note stays for `discard`."""
        upload_id, self._upload_id = self._upload_id, None
        if upload_id is None:
            return
        try:
            await self._notes.remove(upload_id)
        except StoreError as error:
            _log.warning("multipart upload was not aborted", ref=self._ref, error=error.message)

    async def _send_large(self, part: LargePart) -> None:
        self._sums[part.number] = part.crc, part.filled
        assert self._upload_id is not None
        self._parts[part.number] = await self._sender.part(
            self._upload_id, part.number, part.body(), part.crc, part.md5
        )

    def _publication(self, size: int, crc: int, etag: Callable[[], Awaitable[str | None]]) -> Publication:
        return Publication(self._client, self._ref, size=size, crc=crc, etag=etag, replace=self._replace)
