"""A local file on its way into a bucket, in parts that outlive the process: a multipart upload whose id is noted in the bucket.

What an earlier process sent is listed and compared with the file before it counts. Small files take one PUT, which is made
at the commit: until then nothing of them is in the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import structlog

from stores.backends.s3_client import S3Client
from stores.backends.s3_notes import Notes, is_gone
from stores.backends.s3_parts import file_part_length
from stores.backends.s3_publish import Publication, look, object_info, taken
from stores.backends.s3_send import Part, Sender, hex_etag
from stores.backends.s3_sums import Sums, crc64
from stores.contract import Kind, ObjectInfo
from stores.errors import IntegrityError, NotFound, Retry, StoreError, Unavailable
from stores.transfer.engine import TransferEngine
from stores.transfer.parts import Parts
from stores.transfer.put import FileRange
from stores.transfer.source import SourceFile
from stores.uninterrupted import uninterrupted

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def uploading(
    client: S3Client,
    engine: TransferEngine,
    sender: Sender,
    ref: str,
    path: Path,
    *,
    token: str,
    replace: bool,
    parallel: int,
) -> AsyncIterator[S3Upload]:
    """An upload of the file `path`, begun or gone on with."""
    source = SourceFile(path)
    try:
        await engine.run(source.open)
        notes = Notes(client, ref, token)
        upload = S3Upload(client, engine, sender, notes, ref, source, replace=replace, parallel=parallel)
        await upload.open()
        yield upload
    finally:
        await uninterrupted(engine.run(source.close))


class S3Upload:
    """A `PendingUpload`. Takes no memory but a buffer of the engine's while a part is read for its checksum or encrypted.

    Cancelled, it leaves nothing running; the parts that were confirmed stay. Where somebody else aborts the multipart upload
    (a lifecycle rule does), `send` and `commit` fail with `Unavailable`, and the next upload with this token begins anew."""

    kind: ClassVar[Kind] = Kind.UPLOAD

    def __init__(
        self,
        client: S3Client,
        engine: TransferEngine,
        sender: Sender,
        notes: Notes,
        ref: str,
        source: SourceFile,
        *,
        replace: bool,
        parallel: int,
    ) -> None:
        self._client = client
        self._sender = sender
        self._notes = notes
        self._ref = ref
        self._source = source
        self._replace = replace
        self._single = source.size <= client.config.single_put
        self._cut = Parts(source.size, max(1, source.size) if self._single else file_part_length(source.size))
        self._sums = Sums(engine, source, self._cut)
        self._beginning = asyncio.Lock()
        self._upload_id: str | None = None
        self._listed: dict[int, dict[str, Any]] = {}  # what an earlier process sent, not compared yet
        self._there: dict[int, Part] = {}
        self._stored: ObjectInfo | None = None
        self.parts = self._cut.count
        self.parallel = parallel

    def length(self, number: int) -> int:
        return self._cut.length(number)

    async def open(self) -> None:
        """Finds what is there already. `AlreadyExists` where another object has the name and is not to be replaced."""
        await self._client.get()  # loads what the checksums need
        head = await look(self._client, self._ref)
        if head is not None and await self._is_this(head):
            self._stored = object_info(self._ref, head)
        elif head is not None and not self._replace:
            raise taken(self._ref)
        elif not self._single:
            await self._find()

    async def send(self, number: int) -> bool:
        if self._stored is not None or await self._is_there(number):
            return False
        if self._single:
            return True
        body = FileRange(self._source, *self._cut.range(number))
        crc = await self._sums.crc(number)
        upload_id = await self._begun()
        self._there[number] = await self._sender.part(upload_id, number, body, crc, partial(self._sums.md5, number))
        return True

    async def commit(self) -> ObjectInfo:
        there = self._stored
        if there is None:
            self._stored = await (self._put() if self._single else self._complete())
        try:
            if there is not None:
                await self._notes.discard()
            elif self._upload_id is not None:
                await self._notes.remove(self._upload_id)
        except StoreError as error:
            if there is not None and error.retry is Retry.YES:
                raise  # the parts of an upload that nobody needs may be there still: the next try joins again, and removes them
            _log.warning("note about a finished upload was not removed", ref=self._ref, error=error.message)
        assert self._stored is not None
        return self._stored

    async def _find(self) -> None:
        """What an earlier process has begun; that of another file is removed."""
        note = await self._notes.read()
        if note is None:
            return
        if (note.size, note.part) != (self._cut.size, self._cut.part):
            await self._notes.remove(note.upload_id)
            return
        try:
            self._listed = await self._parts_of(note.upload_id)
            self._upload_id = note.upload_id
        except (NotFound, Unavailable) as error:
            if not is_gone(error):
                raise

    async def _parts_of(self, upload_id: str) -> dict[int, dict[str, Any]]:
        found: dict[int, dict[str, Any]] = {}
        following: dict[str, int] = {}
        while True:
            page = await self._client.call("list_parts", self._ref, Key=self._ref, UploadId=upload_id, **following)
            found |= {part["PartNumber"]: part for part in page.get("Parts", ())}
            marker = page.get("NextPartNumberMarker", 0)
            if not page.get("IsTruncated") or marker <= following.get("PartNumberMarker", 0):
                return found
            following = {"PartNumberMarker": marker}

    async def _begun(self) -> str:
        async with self._beginning:
            if self._upload_id is None:
                await uninterrupted(self._begin())
            assert self._upload_id is not None
            return self._upload_id

    async def _begin(self) -> None:
        self._upload_id = await self._notes.begin(size=self._cut.size, part=self._cut.part)

    async def _is_there(self, number: int) -> bool:
        """Whether the store has that part, and it is that of the file."""
        listed = self._listed.pop(number, None)
        if listed is not None and listed["Size"] == self._cut.length(number):
            told = listed.get("ChecksumCRC64NVME")
            ours = crc64(await self._sums.crc(number)) if told else await self._sums.md5(number)
            if ours == (told or hex_etag(listed)):
                self._there[number] = Part(number, hex_etag(listed), told)
        return number in self._there

    async def _is_this(self, head: dict[str, Any]) -> bool:
        """Whether the object has the content of the file: then an earlier commit was carried out."""
        if head["ContentLength"] != self._cut.size:
            return False
        told = head.get("ChecksumCRC64NVME")
        if told:
            return bool(told == crc64(await self._sums.whole_crc()))
        cut_alike = hex_etag(head).endswith(f"-{self.parts}") if not self._single else "-" not in hex_etag(head)
        return cut_alike and hex_etag(head) == await self._etag()

    async def _etag(self) -> str | None:
        return await self._sums.whole_etag(parts=not self._single)

    async def _put(self) -> ObjectInfo:
        body = FileRange(self._source, 0, self._cut.size)
        crc = await self._sums.crc(1)
        publication = await self._publication()
        # May be cancelled while it is sent, which can take long: if the object was made all the same, the next try finds it.
        return await publication.put(partial(self._sender.whole, body, crc, replace=self._replace))

    async def _complete(self) -> ObjectInfo:
        for number in range(1, self.parts + 1):
            if not await self._is_there(number):
                raise IntegrityError(
                    f"{self._ref}: part {number} of {self.parts} was not sent: send it, and commit again", ref=self._ref
                )
        assert self._upload_id is not None
        parts = [self._there[number] for number in range(1, self.parts + 1)]
        return await uninterrupted((await self._publication()).complete(self._upload_id, parts))

    async def _publication(self) -> Publication:
        return Publication(
            self._client,
            self._ref,
            size=self._cut.size,
            crc=await self._sums.whole_crc(),
            etag=self._etag,
            replace=self._replace,
            joins=True,
        )
