"""One object on its way into a bucket: a single PUT where it fits into one buffer, else a multipart upload.

Stored means stored: a checksum sent beside the data proves nothing, since old servers accept any and look at none. It counts
only where the server returns it (CRC-64/NVME, which covers the whole object also when it came in parts); where it does not,
the ETag must be the MD5 of the content, or the MD5 of the parts' MD5s. Where neither agrees the write fails.

A multipart upload that nobody completes or aborts keeps its parts, invisible and paid for. S3 stores no owner's mark with
an upload, so its id is kept in a small object below `.storage-agent/uploads/` for as long as it runs: that is what
`discard` finds after a crash. Where the very answer that begins an upload is lost, an empty one stays that nobody can be
shown to own; the bucket's lifecycle rule `AbortIncompleteMultipartUpload` is for those.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import structlog

from stores.backends.s3_client import S3Client
from stores.contract import GiB, Kind, MiB, ObjectInfo
from stores.errors import AlreadyExists, IntegrityError, NotFound, StoreError, TooLarge, Unavailable
from stores.paths import RECORDS
from stores.transfer.engine import TransferEngine
from stores.uninterrupted import uninterrupted

# Amazon S3's limits for multipart uploads ("Amazon S3 multipart upload limits").
MAX_PARTS = 10_000
MAX_PART = 5 * GiB
# Above the 5 MiB that every part but the last must have.
SMALLEST_PART = 8 * MiB
# What one upload may have under way beside the buffer being filled, as long as its parts are not larger than that.
IN_FLIGHT = 32 * MiB

_log = structlog.get_logger(__name__)


def part_length(number: int, size: int | None) -> int:
    """Length in bytes of part `number` (from 1) of an object of `size` bytes.

    With a known size all parts are equal and suffice for it. With an unknown one they double every 1000 parts, which
    reaches 8 TiB; memory then grows with what was sent. `TooLarge` beyond what S3 can hold.
    """
    if size is None:
        return min(SMALLEST_PART << (number - 1) // 1000, MAX_PART)
    if size > MAX_PARTS * MAX_PART:
        raise TooLarge(
            f"an S3 object holds at most {MAX_PARTS * MAX_PART} bytes", limit=MAX_PARTS * MAX_PART, seen=size
        )
    even = -(-size // MAX_PARTS)
    return max(SMALLEST_PART, -(-even // MiB) * MiB)


def marker_key(ref: str, token: str) -> str:
    """The key under which the writer `token` notes its multipart upload of `ref`."""
    identity = hashlib.sha256("\0".join((ref, token)).encode()).hexdigest()
    return f"{RECORDS}/uploads/{identity[:32]}.json"


def crc64(value: int) -> str:
    """A CRC-64/NVME as S3 writes it: base64 of eight bytes, big-endian."""
    return base64.b64encode(value.to_bytes(8, "big")).decode()


@dataclass(frozen=True, slots=True)
class _Part:
    number: int
    etag: str
    crc: str | None
    """What the server returned, if it did."""


@asynccontextmanager
async def uploading(
    client: S3Client, engine: TransferEngine, ref: str, *, token: str, size: int | None, replace: bool
) -> AsyncIterator[S3Upload]:
    """An upload of `ref`, aborted on leaving without commit. A part that fails cancels the body of the context at once."""
    upload = S3Upload(client, engine, ref, token=token, size=size, replace=replace)
    if not replace:
        await upload.refuse_existing()
    try:
        async with asyncio.TaskGroup() as group:
            upload.group = group
            yield upload
            upload.stop()
    except BaseExceptionGroup as failures:
        raise _first(failures) from None
    finally:
        await uninterrupted(upload.abort())


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    first = failures.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


class S3Upload:
    """A `PendingStream`. Holds one buffer being filled and at most `IN_FLIGHT` bytes (or one part) being sent."""

    kind: ClassVar[Kind] = Kind.BYTE_STREAM

    def __init__(
        self, client: S3Client, engine: TransferEngine, ref: str, *, token: str, size: int | None, replace: bool
    ) -> None:
        self.group: asyncio.TaskGroup
        self._client = client
        self._engine = engine
        self._ref = ref
        self._marker = marker_key(ref, token)
        self._size = size
        self._replace = replace
        self._length = part_length(1, size)
        self._buffer = io.BytesIO()
        self._sent = 0
        self._crc = 0
        self._number = 0
        self._upload_id: str | None = None
        self._sending: set[asyncio.Task[None]] = set()
        self._parts: list[_Part] = []

    async def refuse_existing(self) -> None:
        """`AlreadyExists` if the name is taken. For servers that ignore `If-None-Match` on writes, as radosgw does."""
        try:
            await self._client.call("head_object", self._ref, Key=self._ref)
        except NotFound:
            return
        raise AlreadyExists(f"{self._ref} exists, and this write was not told to replace it", ref=self._ref)

    async def write(self, data: memoryview) -> None:
        data = data.cast("B")
        if self._size is not None and self._sent + len(data) > self._size:
            raise self._wrong_size(self._sent + len(data))
        while data:
            if self._buffer.tell() == self._length:
                await self._send_part()
            piece = data[: self._length - self._buffer.tell()]
            self._buffer.write(piece)
            self._crc = _crc64nvme(piece, self._crc)
            self._sent += len(piece)
            data = data[len(piece) :]

    async def commit(self) -> ObjectInfo:
        """A cancellation that comes once the object is being published is raised after that was decided either way."""
        if self._size is not None and self._sent != self._size:
            raise self._wrong_size(self._sent)
        if self._upload_id is None and not (self._client.config.always_multipart and self._sent):
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
            await _remove(self._client, self._ref, upload_id, self._marker)
        except StoreError as error:
            _log.warning("multipart upload was not aborted", ref=self._ref, error=error.message)

    async def _send_part(self) -> None:
        if self._upload_id is None:
            await uninterrupted(self._begin())
        room = max(1, IN_FLIGHT // self._length)
        while len(self._sending) >= room:
            await asyncio.wait(self._sending, return_when=asyncio.FIRST_COMPLETED)
        self._number += 1
        task = self.group.create_task(self._upload_part(self._number, self._buffer), name=f"s3 part {self._number}")
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)
        self._buffer = io.BytesIO()
        self._length = part_length(self._number + 1, self._size)

    async def _begin(self) -> None:
        answer = await self._client.call(
            "create_multipart_upload", self._ref, Key=self._ref, ChecksumAlgorithm="CRC64NVME"
        )
        self._upload_id = answer["UploadId"]
        note = json.dumps({"key": self._ref, "upload_id": self._upload_id}).encode()
        await self._client.call("put_object", self._marker, Key=self._marker, Body=note)

    async def _upload_part(self, number: int, part: io.BytesIO) -> None:
        with part.getbuffer() as view:
            crc = crc64(_crc64nvme(view))
        part.seek(0)
        answer = await self._client.call(
            "upload_part",
            self._ref,
            Key=self._ref,
            UploadId=self._upload_id,
            PartNumber=number,
            Body=part,
            ChecksumCRC64NVME=crc,
        )
        echoed = answer.get("ChecksumCRC64NVME")
        etag = _hex(answer)
        if echoed != crc and (echoed is not None or etag != await self._engine.run(_md5, part)):
            raise self._unconfirmed(f"part {number}")
        self._parts.append(_Part(number, etag, echoed))

    async def _put(self) -> ObjectInfo:
        self._buffer.seek(0)
        condition = {} if self._replace else {"IfNoneMatch": "*"}
        crc = crc64(self._crc)
        arguments = {"Key": self._ref, "Body": self._buffer, "ChecksumCRC64NVME": crc, **condition}
        etag = await self._engine.run(_md5, self._buffer)
        answer = await self._publish("put_object", etag, arguments)
        return await self._confirm(answer, etag)

    async def _complete(self) -> ObjectInfo:
        if not self._replace:
            await self.refuse_existing()
        parts = sorted(self._parts, key=lambda part: part.number)
        # A checksum may only be named where the server knows it: radosgw answers InvalidPart otherwise.
        listed = [
            {
                "PartNumber": part.number,
                "ETag": f'"{part.etag}"',
                **({"ChecksumCRC64NVME": part.crc} if part.crc else {}),
            }
            for part in parts
        ]
        whole = {"ChecksumCRC64NVME": crc64(self._crc)} if all(part.crc for part in parts) else {}
        condition = {} if self._replace else {"IfNoneMatch": "*"}
        arguments = {
            "Key": self._ref,
            "UploadId": self._upload_id,
            "MultipartUpload": {"Parts": listed},
            **whole,
            **condition,
        }
        etag = multipart_etag([part.etag for part in parts])
        answer = await self._publish("complete_multipart_upload", etag, arguments)
        info = await self._confirm(answer, etag)
        self._upload_id = None
        try:
            await self._client.call("delete_object", self._marker, Key=self._marker)
        except StoreError as error:
            _log.warning("note about a finished upload was not removed", ref=self._ref, error=error.message)
        return info

    async def _publish(self, operation: str, etag: str | None, arguments: dict[str, Any]) -> dict[str, Any]:
        """The call that makes the object visible. When it fails although it was carried out (the answer to the first try
        was lost, and the second found the object there or the upload gone), the object itself tells."""
        try:
            return await self._client.call(operation, self._ref, **arguments)
        except (AlreadyExists, Unavailable) as error:
            if isinstance(error, AlreadyExists) and error.details.get("tries", 1) == 1:
                raise
            try:
                head = await self._client.call("head_object", self._ref, Key=self._ref)
            except StoreError:
                raise error from None
            if etag is None or _hex(head) != etag or head["ContentLength"] != self._sent:
                raise
            return head

    async def _confirm(self, answer: dict[str, Any], etag: str | None) -> ObjectInfo:
        """What the store says of the object now, if that is what was sent; else the wrong object is removed again."""
        try:
            head = await self._client.call("head_object", self._ref, Key=self._ref, ChecksumMode="ENABLED")
        except Unavailable:
            if not self._agrees(answer, etag):
                raise
            return ObjectInfo(self._ref, self._sent, answer["ETag"])  # proven; only its time is not known
        told = {"ETag": head.get("ETag"), "ChecksumCRC64NVME": head.get("ChecksumCRC64NVME")} | answer
        if head["ContentLength"] == self._sent and self._agrees(told, etag):
            return object_info(self._ref, head)
        if head.get("ETag") == answer.get("ETag"):
            await self._client.call("delete_object", self._ref, Key=self._ref)
        raise self._unconfirmed("the object")

    def _agrees(self, told: dict[str, Any], etag: str | None) -> bool:
        """Whether the store's own checksum is that of what was sent, or without one its ETag."""
        if told.get("ChecksumCRC64NVME"):
            return bool(told["ChecksumCRC64NVME"] == crc64(self._crc))
        return etag is not None and _hex(told) == etag

    def _wrong_size(self, seen: int) -> IntegrityError:
        return IntegrityError(
            f"{self._ref}: {self._size} bytes were announced and {seen} were written",
            ref=self._ref,
            needed=self._size,
            seen=seen,
        )

    def _unconfirmed(self, what: str) -> IntegrityError:
        return IntegrityError(
            f"{self._ref}: the store holds something else than was sent as {what}, or does not say what it holds: neither"
            " its checksum nor its ETag agree",
            ref=self._ref,
            store=self._client.config.id,
        )


async def discard(client: S3Client, ref: str, token: str) -> None:
    """Abort the multipart upload that the writer `token` of `ref` noted and did not end. Idempotent."""
    marker = marker_key(ref, token)
    try:
        note = json.loads(await client.read(marker))
        key, upload_id = note["key"], note["upload_id"]
    except NotFound:
        return
    except (ValueError, KeyError, TypeError):
        raise IntegrityError(f"{marker} is not a note about an upload; look into it and remove it", ref=ref) from None
    if key == ref and isinstance(upload_id, str):
        await _remove(client, ref, upload_id, marker)


async def _remove(client: S3Client, ref: str, upload_id: str, marker: str) -> None:
    try:
        await client.call("abort_multipart_upload", ref, Key=ref, UploadId=upload_id)
    except (NotFound, Unavailable) as error:
        if error.details["code"] not in ("NoSuchUpload", "NoSuchKey"):  # it is gone already
            raise
    await client.call("delete_object", marker, Key=marker)


def object_info(ref: str, head: dict[str, Any]) -> ObjectInfo:
    """From the answer to a HEAD."""
    modified = head.get("LastModified")
    return ObjectInfo(ref, head["ContentLength"], head.get("ETag"), modified.timestamp() if modified else None)


def multipart_etag(parts: Sequence[str]) -> str | None:
    """The ETag of an object made of parts with these ETags, where those are MD5s in hex; None where they are not."""
    if not all(re.fullmatch("[0-9a-f]{32}", part) for part in parts):
        return None
    joined = b"".join(bytes.fromhex(part) for part in parts)
    return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(parts)}"


def _crc64nvme(data: memoryview, before: int = 0) -> int:
    """The CRC-64/NVME of `data` after bytes whose CRC is `before`."""
    from awscrt import checksums  # by now imported by the client, in a thread

    value: int = checksums.crc64nvme(data, before)
    return value


def _hex(answer: dict[str, Any]) -> str:
    """The ETag of an answer without its quotes."""
    return str(answer.get("ETag") or "").strip('"').lower()


def _md5(buffer: io.BytesIO) -> str:
    with buffer.getbuffer() as view:
        return hashlib.md5(view, usedforsecurity=False).hexdigest()
