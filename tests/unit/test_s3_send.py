"""What is believed of an answer to a PUT, and which error it is otherwise."""

from __future__ import annotations

import hashlib
from typing import Any, cast

import pytest
from awscrt import checksums

from stores.backends.connecting import system_resolve
from stores.backends.s3_client import S3Client
from stores.backends.s3_config import s3_config
from stores.backends.s3_send import Sender
from stores.backends.s3_signed import Signer
from stores.backends.s3_sums import crc64
from stores.errors import (
    AccessDenied,
    AlreadyExists,
    IntegrityError,
    NoSpace,
    NotFound,
    StorageError,
    Unavailable,
)
from stores.settings import StoreSettings
from stores.to import S3TO
from stores.transfer.put import PutAnswer, Putter, Views
from stores.transfer.wire import Answer

DATA = b"the data of a part"
CRC = checksums.crc64nvme(DATA)
MD5 = hashlib.md5(DATA).hexdigest()
OTHER = crc64(CRC ^ 1)


class Answering:
    """A putter that has its answer already. `again`: whether it would have been tried again."""

    def __init__(self, status: int, content: bytes = b"", tries: int = 1, **headers: str) -> None:
        self.answer = PutAnswer(
            Answer(status, "", {name.replace("_", "-"): value for name, value in headers.items()}, True), content, tries
        )
        self.again = False

    async def put(self, body: Any, target: Any, what: str, again: Any) -> PutAnswer:
        self.again = again(self.answer)
        return self.answer


def sender(answering: Answering) -> Sender:
    config = s3_config(S3TO(endPoint="http://s3.example", bucketName="bucket"), StoreSettings())
    client = S3Client(config, StoreSettings(), cast(Any, None))
    return Sender(client, Signer(client, system_resolve, expiry_s=1), cast(Putter, answering), "object")


async def part(answering: Answering) -> tuple[str, str | None]:
    async def md5() -> str:
        return MD5

    found = await sender(answering).part("upload", 7, Views([memoryview(DATA)]), CRC, md5)
    assert found.number == 7
    return found.etag, found.crc


async def test_checksum_that_comes_back_is_believed_whatever_the_etag() -> None:
    assert await part(Answering(200, etag='"opaque"', x_amz_checksum_crc64nvme=crc64(CRC))) == ("opaque", crc64(CRC))


async def test_without_a_checksum_the_etag_must_be_the_md5() -> None:
    assert await part(Answering(200, etag=f'"{MD5}"')) == (MD5, None)
    with pytest.raises(IntegrityError, match="part 7"):
        await part(Answering(200, etag='"opaque"'))


async def test_another_checksum_is_a_failure_even_with_the_right_etag() -> None:
    with pytest.raises(IntegrityError, match="part 7"):
        await part(Answering(200, etag=f'"{MD5}"', x_amz_checksum_crc64nvme=OTHER))


@pytest.mark.parametrize(
    ("status", "code", "error", "again"),
    [
        (200, "InternalError", Unavailable, True),
        (200, "", Unavailable, True),  # neither an error nor an ETag: not an answer of S3
        (400, "BadDigest", IntegrityError, True),
        (400, "RequestTimeout", Unavailable, True),
        (403, "AccessDenied", AccessDenied, False),
        (403, "SignatureDoesNotMatch", AccessDenied, False),
        (404, "NoSuchBucket", NotFound, False),
        (404, "NoSuchUpload", Unavailable, False),
        (412, "PreconditionFailed", AlreadyExists, False),
        (507, "", NoSpace, False),
        (503, "SlowDown", Unavailable, True),
    ],
)
async def test_anything_else_is_a_typed_error(status: int, code: str, error: type[StorageError], again: bool) -> None:
    content = f"<?xml version='1.0'?><Error><Code>{code}</Code></Error>".encode() if code else b""
    answering = Answering(status, content, tries=3)
    with pytest.raises(error) as failed:
        await part(answering)
    assert type(failed.value) is error
    assert failed.value.details["tries"] == 3
    assert answering.again is again


async def test_whole_objects_are_not_believed_yet() -> None:
    told = await sender(Answering(200, etag='"e"')).whole(Views([memoryview(DATA)]), CRC, replace=True)
    assert told == {"ETag": '"e"', "ChecksumCRC64NVME": None}
