"""A local file on its way into a container, in segments that outlive the process.

What an earlier process sent is found by listing: the names of segments tell whose they are, and the listing tells their MD5s,
which are compared with the file's. Small files take one PUT, which is made at the commit: until then nothing of them is in
the store.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import ClassVar

from stores.backends import swift_segments as segments
from stores.backends.s3_sums import Sums
from stores.backends.swift_client import SwiftClient
from stores.backends.swift_config import FILE_PART, file_part_length
from stores.backends.swift_publish import Head, Publication, large_etag, look, taken, tidy
from stores.backends.swift_send import Segment, Sender
from stores.contract import Kind, ObjectInfo
from stores.errors import IntegrityError
from stores.transfer.engine import TransferEngine
from stores.transfer.parts import Parts
from stores.transfer.put import FileRange
from stores.transfer.source import SourceFile
from stores.uninterrupted import uninterrupted


@asynccontextmanager
async def uploading(
    client: SwiftClient,
    engine: TransferEngine,
    sender: Sender,
    ref: str,
    path: Path,
    *,
    token: str,
    replace: bool,
    parallel: int,
) -> AsyncIterator[SwiftUpload]:
    """An upload of the file `path`, begun or gone on with."""
    source = SourceFile(path)
    try:
        await engine.run(source.open)
        upload = SwiftUpload(client, engine, sender, ref, source, token=token, replace=replace, parallel=parallel)
        await upload.open()
        yield upload
    finally:
        await uninterrupted(engine.run(source.close))


class SwiftUpload:
    """A `PendingUpload`. Takes no memory but a buffer of the engine's while a part is read for its checksum or encrypted.

    Cancelled, it leaves nothing running; the segments that were confirmed stay."""

    kind: ClassVar[Kind] = Kind.UPLOAD

    def __init__(
        self,
        client: SwiftClient,
        engine: TransferEngine,
        sender: Sender,
        ref: str,
        source: SourceFile,
        *,
        token: str,
        replace: bool,
        parallel: int,
    ) -> None:
        self._client = client
        self._sender = sender
        self._ref = ref
        self._source = source
        self._token = token
        self._replace = replace
        self._single = source.size <= FILE_PART
        self._cut = Parts(source.size, max(1, source.size) if self._single else file_part_length(source.size))
        self._sums = Sums(engine, source, self._cut)
        self._kind = f"{segments.writer(ref, token)}{self._cut.size}-{self._cut.part}-"
        self._write = f"{self._kind}{secrets.token_hex(8)}"
        self._listed: dict[str, segments.Listed] = {}  # what an earlier process sent, not compared yet
        self._there: dict[int, Segment] = {}
        self._stored: ObjectInfo | None = None
        self.parts = self._cut.count
        self.parallel = parallel

    def length(self, number: int) -> int:
        return self._cut.length(number)

    async def open(self) -> None:
        """Finds what is there already. `AlreadyExists` where another object has the name and is not to be replaced."""
        head = await look(self._client, self._ref)
        if head is not None and await self._is_this(head):
            self._stored = head.info
        elif head is not None and not self._replace:
            raise taken(self._ref)
        elif not self._single:
            await self._find(head)

    async def send(self, number: int) -> bool:
        if self._stored is not None or await self._is_there(number):
            return False
        if self._single:
            return True
        await self._client.make_container()
        body = FileRange(self._source, *self._cut.range(number))
        self._there[number] = await self._sender.segment(self._write, number, body, await self._sums.md5(number))
        return True

    async def commit(self) -> ObjectInfo:
        if self._stored is None:
            self._stored = await (self._put() if self._single else self._complete())
        await self._tidy()
        return self._stored

    async def _find(self, head: Head | None) -> None:
        """What an earlier process has begun; that of another file is removed, and that which the object is made of stays."""
        begun = await segments.writes(self._client, self._ref, self._token)
        for write, found in begun.items():
            if head is not None and write == head.write:
                continue
            if write.startswith(self._kind) and not self._listed:
                self._write, self._listed = write, found
            else:
                await segments.remove(self._client, write)

    async def _is_there(self, number: int) -> bool:
        """Whether the store has that part, and it is that of the file."""
        name = segments.segment(self._write, number)
        listed = self._listed.pop(name.rpartition("/")[2], None)
        if listed is not None and listed.size == self._cut.length(number):
            md5 = await self._sums.md5(number)
            if listed.etag == md5:
                self._there[number] = Segment(name, md5, listed.size)
        return number in self._there

    async def _is_this(self, head: Head) -> bool:
        """Whether the object has the content of the file: then an earlier commit was carried out."""
        return head.info.size == self._cut.size and head.large != self._single and head.etag == await self._etag()

    async def _etag(self) -> str:
        md5s = [await self._sums.md5(number) for number in range(1, self.parts + 1)]
        return md5s[0] if self._single else large_etag(md5s)

    async def _put(self) -> ObjectInfo:
        await self._client.make_container()
        body = FileRange(self._source, 0, self._cut.size)
        md5 = await self._sums.md5(1)
        # May be cancelled while it is sent, which can take long: if the object was made all the same, the next try finds it.
        return await (await self._publication()).publish(partial(self._sender.put, self._ref, body, md5))

    async def _complete(self) -> ObjectInfo:
        for number in range(1, self.parts + 1):
            if not await self._is_there(number):
                raise IntegrityError(
                    f"{self._ref}: part {number} of {self.parts} was not sent: send it, and commit again", ref=self._ref
                )
        parts = [self._there[number] for number in range(1, self.parts + 1)]
        publication = await self._publication()
        return await uninterrupted(publication.publish(partial(self._sender.manifest, self._ref, parts)))

    async def _publication(self) -> Publication:
        return Publication(
            self._client,
            self._ref,
            write=self._write,
            size=self._cut.size,
            etag=await self._etag(),
            replace=self._replace,
            joins=True,
        )

    async def _tidy(self) -> None:
        """Segments by this writer that are not those of the object are of no more use."""
        if self._single:
            return
        head = await look(self._client, self._ref)
        for write in await segments.writes(self._client, self._ref, self._token):
            if head is not None and write != head.write:
                await tidy(self._client, self._ref, write)
