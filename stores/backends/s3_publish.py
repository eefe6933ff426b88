"""Making what was sent the object, and proof that it is.

Stored means stored: the object's checksum as the server tells it must be that of what was sent (CRC-64/NVME, which covers the
whole object also when it came in parts); where the server tells none, its ETag must be the MD5 of the content, or the MD5 of
the parts' MD5s. Where neither agrees the write fails.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from stores.backends.s3_client import S3Client
from stores.backends.s3_send import Part, hex_etag, unconfirmed
from stores.backends.s3_sums import crc64
from stores.contract import ObjectInfo
from stores.errors import AlreadyExists, NotFound, StoreError, Unavailable
from stores.uninterrupted import uninterrupted

Told = dict[str, Any]
"""What a server said of an object, by botocore's names."""


class Publication:
    """Of one object of `size` bytes.

    `joins`: an object that is there with just this content is taken for the outcome of an earlier try, also where this try did
    not cause it.
    """

    def __init__(
        self,
        client: S3Client,
        ref: str,
        *,
        size: int,
        crc: int,
        etag: Callable[[], Awaitable[str | None]],
        replace: bool,
        joins: bool = False,
    ) -> None:
        """`etag`: what the ETag is where it is made of MD5s; asked for where it is needed."""
        self._client = client
        self._ref = ref
        self._size = size
        self._crc = crc64(crc)
        self._etag = etag
        self._replace = replace
        self._joins = joins

    async def put(self, send: Callable[[], Awaitable[Told]]) -> ObjectInfo:
        """By a single request. A cancellation that comes once it was answered is raised when all is decided."""
        return await uninterrupted(self._confirmed(await self._published(send)))

    async def complete(self, upload_id: str, parts: Sequence[Part]) -> ObjectInfo:
        """By completing a multipart upload; `parts` in order."""
        if not self._replace:  # for servers that ignore `If-None-Match` on writes, as radosgw does
            found = await look(self._client, self._ref)
            if found is not None:
                if self._joins and await self._is_it(found):
                    return object_info(self._ref, found)
                raise taken(self._ref)
        # A checksum may only be named where the server knows it: radosgw answers InvalidPart otherwise.
        listed = [
            {
                "PartNumber": part.number,
                "ETag": f'"{part.etag}"',
                **({"ChecksumCRC64NVME": part.crc} if part.crc else {}),
            }
            for part in parts
        ]
        whole = {"ChecksumCRC64NVME": self._crc} if all(part.crc for part in parts) else {}
        condition = {} if self._replace else {"IfNoneMatch": "*"}

        async def send() -> Told:
            return await self._client.call(
                "complete_multipart_upload",
                self._ref,
                Key=self._ref,
                UploadId=upload_id,
                MultipartUpload={"Parts": listed},
                **whole,
                **condition,
            )

        return await self._confirmed(await self._published(send))

    async def _published(self, send: Callable[[], Awaitable[Told]]) -> Told:
        """The call that makes the object visible. When it fails although it was carried out (the answer to the first try
        was lost, and the second found the object there or the upload gone), the object itself tells."""
        try:
            return await send()
        except (AlreadyExists, NotFound, Unavailable) as error:
            if isinstance(error, AlreadyExists) and error.details.get("tries", 1) == 1 and not self._joins:
                raise
            try:
                found = await look(self._client, self._ref)
            except StoreError:
                raise error from None
            if found is None or not await self._is_it(found):
                raise
            return found

    async def _confirmed(self, answer: Told) -> ObjectInfo:
        """What the store says of the object now, if that is what was sent; else the wrong object is removed again."""
        try:
            head = await self._client.call("head_object", self._ref, Key=self._ref, ChecksumMode="ENABLED")
        except Unavailable:
            if not await self._agrees(answer):
                raise
            return ObjectInfo(self._ref, self._size, answer["ETag"])  # proven; only its time is not known
        told = {"ETag": head.get("ETag"), "ChecksumCRC64NVME": head.get("ChecksumCRC64NVME")}
        told |= {name: value for name, value in answer.items() if value}
        if head["ContentLength"] == self._size and await self._agrees(told):
            return object_info(self._ref, head)
        if head.get("ETag") == answer.get("ETag"):
            await self._client.call("delete_object", self._ref, Key=self._ref)
        raise unconfirmed(self._client, self._ref, "the object")

    async def _is_it(self, head: Told) -> bool:
        return bool(head["ContentLength"] == self._size) and await self._agrees(head)

    async def _agrees(self, told: Told) -> bool:
        """Whether the store's own checksum is that of what was sent, or without one its ETag."""
        if told.get("ChecksumCRC64NVME"):
            return bool(told["ChecksumCRC64NVME"] == self._crc)
        etag = await self._etag()
        return etag is not None and hex_etag(told) == etag


async def look(client: S3Client, ref: str) -> Told | None:
    """What there is under that name."""
    try:
        return await client.call("head_object", ref, Key=ref, ChecksumMode="ENABLED")
    except NotFound:
        return None


def taken(ref: str) -> AlreadyExists:
    """The error for a name that is not free."""
    return AlreadyExists(f"{ref} exists, and this write was not told to replace it", ref=ref)


def object_info(ref: str, head: Told) -> ObjectInfo:
    """From the answer to a HEAD."""
    modified = head.get("LastModified")
    return ObjectInfo(ref, head["ContentLength"], head.get("ETag"), modified.timestamp() if modified else None)
