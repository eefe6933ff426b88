"""The contract on Ceph's radosgw: a second real S3 server, with older habits, and a second Swift server."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from stores.backends import swift_segments as segments
from stores.backends.s3 import S3Store
from stores.backends.swift import SwiftStore
from stores.backends.swift_publish import WRITE
from stores.transfer.engine import TransferEngine
from tests.buckets import made_bucket
from tests.contract.store_contract import StoreContract
from tests.contract.test_s3_store import S3Hooks
from tests.contract.test_swift_store import SwiftHooks
from tests.servers import S3Server
from tests.swift import Container, SwiftServer


@pytest.fixture(scope="module")
def bucket_there(radosgw: S3Server) -> Iterator[tuple[Any, str]]:
    with made_bucket(radosgw) as made:
        yield made


@pytest.fixture(scope="module")
def container_there(radosgw: S3Server) -> Iterator[Container]:
    assert radosgw.pid is not None
    container = Container(SwiftServer(radosgw.port, radosgw.secret_key, radosgw.pid), f"c-{uuid.uuid4().hex[:12]}")
    yield container
    container.ask("DELETE")


class TestRadosgwSwift(SwiftHooks, StoreContract):
    @pytest.fixture
    async def store(self, container_there: Container, engine: TransferEngine) -> AsyncIterator[SwiftStore]:
        async with self.opened(container_there, engine) as store:
            yield store

    def _segments_of(self, ref: str) -> set[str]:
        """It does not tell what a manifest names: by the write that the object names."""
        _, headers, _ = self.container.ask("HEAD", ref)
        if "X-Static-Large-Object" not in headers:
            return set()
        folder = f"{segments.SEGMENTS}/{headers[WRITE]}/"
        return {name for name in self.container.names() if name.startswith(folder)}

    def test_what_it_does_not_keep(self, container_there: Container) -> None:
        """It ignores the condition of a PUT: of two writes of one name at once the later one stays. See docs/stores.md, which
        says so."""
        container_there.put("taken", b"first")
        status, _, _ = container_there.ask("PUT", "taken", b"second", If_None_Match="*")
        assert status == 201
        assert container_there.get("taken") == b"second"
        container_there.empty()


class TestRadosgwS3(S3Hooks, StoreContract):
    @pytest.fixture
    async def store(
        self, radosgw: S3Server, bucket_there: tuple[Any, str], engine: TransferEngine
    ) -> AsyncIterator[S3Store]:
        async with self.opened(radosgw, bucket_there, engine) as store:
            yield store

    def test_what_it_does_not_keep(self, radosgw: S3Server, bucket_there: tuple[Any, str]) -> None:
        """It ignores the condition of a completion: of two large writes of one name at once the later one stays. See
        docs/stores.md, which says so."""
        client, bucket = bucket_there
        client.put_object(Bucket=bucket, Key="taken", Body=b"first")
        upload = client.create_multipart_upload(Bucket=bucket, Key="taken")["UploadId"]
        told = {"Bucket": bucket, "Key": "taken", "UploadId": upload}
        part = client.upload_part(**told, PartNumber=1, Body=b"second")["ETag"]
        parts = {"Parts": [{"PartNumber": 1, "ETag": part}]}
        client.complete_multipart_upload(**told, MultipartUpload=parts, IfNoneMatch="*")
        assert client.get_object(Bucket=bucket, Key="taken")["Body"].read() == b"second"
        client.delete_object(Bucket=bucket, Key="taken")
