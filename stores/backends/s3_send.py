"""Sending the data of objects: whole ones and parts, over the engine's connections, by requests signed ahead.

A checksum that is sent beside the data proves nothing, since old servers accept any and look at none. It counts only where the
server returns it; where it does not, the ETag of a part must be the MD5 of its content.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from stores.backends.s3_client import S3Client
from stores.backends.s3_errors import from_code
from stores.backends.s3_signed import Signer
from stores.backends.s3_sums import crc64
from stores.errors import IntegrityError
from stores.transfer.put import PutAnswer, Putter, Reread, Sendable

# Answers with these codes say that the request did not arrive as it was sent, or not in time.
_AGAIN = frozenset(
    {"RequestTimeout", "SlowDown", "InternalError", "ServiceUnavailable", "BadDigest", "IncompleteBody"}
    | {"XAmzContentChecksumMismatch"}
)
_CODE = re.compile(rb"<Code>\s*([A-Za-z0-9_.-]{1,100})\s*</Code>")


@dataclass(frozen=True, slots=True)
class Part:
    """A part that the store holds, and that is right."""

    number: int
    etag: str
    crc: str | None
    """The checksum, where the server has told it."""


class Sender:
    """Sends data of one object."""

    def __init__(self, client: S3Client, signer: Signer, putter: Putter, ref: str) -> None:
        self._client = client
        self._signer = signer
        self._putter = putter
        self._ref = ref

    async def part(
        self, upload_id: str, number: int, body: Sendable | Reread, crc: int, md5: Callable[[], Awaitable[str]]
    ) -> Part:
        """Sends a part of a multipart upload. `IntegrityError` when the server does not confirm it. `md5`: of the content,
        asked for where it is needed."""
        text = crc64(crc)
        told = await self._put("upload_part", body, text, {}, UploadId=upload_id, PartNumber=number)
        echoed = told["ChecksumCRC64NVME"]
        if echoed != text and (echoed is not None or hex_etag(told) != await md5()):
            raise unconfirmed(self._client, self._ref, f"part {number}")
        return Part(number, hex_etag(told), echoed)

    async def whole(self, body: Sendable, crc: int, *, replace: bool) -> dict[str, Any]:
        """Makes `body` the object. What the server told, by botocore's names; nothing of it is believed yet."""
        headers = {} if replace else {"If-None-Match": "*"}
        return await self._put("put_object", body, crc64(crc), headers, **({} if replace else {"IfNoneMatch": "*"}))

    async def _put(
        self, operation: str, body: Sendable | Reread, crc: str, headers: dict[str, str], **parameters: Any
    ) -> dict[str, Any]:
        target = partial(
            self._signer.target,
            operation,
            self._ref,
            headers | {"x-amz-checksum-crc64nvme": crc},
            ChecksumCRC64NVME=crc,
            **parameters,
        )
        answer = await self._putter.put(body, target, self._ref, _may_change)
        if failed(answer):
            # A 200 with an error in its body came too late for another status.
            status = answer.status if answer.status >= 300 else 500
            code = error_code(answer) or str(status)
            error = from_code(code, status, store=self._client.config.id, operation=operation, ref=self._ref)
            error.details["tries"] = answer.tries
            raise error
        found = answer.answer.headers
        return {"ETag": found.get("etag"), "ChecksumCRC64NVME": found.get("x-amz-checksum-crc64nvme")}


def error_code(answer: PutAnswer) -> str | None:
    """The S3 error code in an answer's body."""
    match = _CODE.search(answer.content)
    return match[1].decode() if match else None


def failed(answer: PutAnswer) -> bool:
    """Whether it says anything else than that the data were taken."""
    return answer.status != 200 or b"<Error" in answer.content or "etag" not in answer.answer.headers


def _may_change(answer: PutAnswer) -> bool:
    return failed(answer) and (answer.status < 300 or error_code(answer) in _AGAIN)


def hex_etag(told: dict[str, Any]) -> str:
    """The ETag of an answer without its quotes."""
    return str(told.get("ETag") or "").strip('"').lower()


def unconfirmed(client: S3Client, ref: str, what: str) -> IntegrityError:
    """The error for a store that does not hold, or does not say that it holds, what was sent."""
    return IntegrityError(
        f"{ref}: the store holds something else than was sent as {what}, or does not say what it holds: neither"
        " its checksum nor its ETag agree",
        ref=ref,
        store=client.config.id,
    )
