"""The contract on real S3: SeaweedFS over http and https, and moto for a second server's habits."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from stores.backends.s3 import S3Store
from stores.contract import DataStore
from stores.secret import Secret
from stores.settings import StoreSettings
from stores.to import S3TO
from stores.transfer.engine import TransferEngine
from tests.contract.store_contract import STRANGE_REFS, StoreContract, refs
from tests.servers import S3Server

NAMES_WITHOUT_BACKSLASH = [ref for ref in STRANGE_REFS if "\\" not in ref]


@pytest.fixture
async def engine() -> AsyncIterator[TransferEngine]:
    engine = TransferEngine()
    yield engine
    await engine.aclose()


def s3_to(server: S3Server, bucket: str, *, tls: bool = False) -> S3TO:
    return S3TO(
        endPoint=server.tls_endpoint if tls else server.endpoint,
        accessKey=server.access_key,
        secretKey=Secret(server.secret_key),
        bucketName=bucket,
    )


class S3Contract(StoreContract):
    """Looks past the store with boto3."""

    client: Any
    bucket: str

    async def put_directly(self, ref: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=ref, Body=data)

    async def read_directly(self, ref: str) -> bytes | None:
        try:
            body: bytes = self.client.get_object(Bucket=self.bucket, Key=ref)["Body"].read()
        except self.client.exceptions.NoSuchKey:
            return None
        return body

    async def everything_left(self) -> set[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        keys = {entry["Key"] for page in pages for entry in page.get("Contents", ())}
        uploads = self.client.list_multipart_uploads(Bucket=self.bucket).get("Uploads", ())
        return keys | {f"upload {upload['Key']}" for upload in uploads}


class TestSeaweedFS(S3Contract):
    """Takes a backslash in a key for a slash, so that the names with one are left to moto."""

    @pytest.fixture
    async def store(self, seaweed: S3Server, bucket: str, engine: TransferEngine) -> AsyncIterator[S3Store]:
        self.client, self.bucket = seaweed.client(), bucket
        store = S3Store(s3_to(seaweed, bucket), StoreSettings(), engine)
        yield store
        await store.aclose()
        self.client.close()

    @pytest.mark.parametrize("ref", NAMES_WITHOUT_BACKSLASH)
    async def test_unusual_names_are_taken_literally(self, store: DataStore, ref: str) -> None:
        await super().test_unusual_names_are_taken_literally(store, ref)

    @pytest.mark.parametrize("ref", NAMES_WITHOUT_BACKSLASH)
    async def test_unusual_names_are_written_literally(self, store: DataStore, ref: str) -> None:
        await super().test_unusual_names_are_written_literally(store, ref)

    async def test_unusual_names_are_listed_literally(self, store: DataStore) -> None:
        await self._fill(NAMES_WITHOUT_BACKSLASH)
        assert await refs(store.list()) == sorted(NAMES_WITHOUT_BACKSLASH)


class TestMoto(S3Contract):
    @pytest.fixture
    async def store(self, moto: S3Server, engine: TransferEngine) -> AsyncIterator[S3Store]:
        self.client, self.bucket = moto.client(), "b-" + uuid.uuid4().hex[:12]
        self.client.create_bucket(Bucket=self.bucket)
        store = S3Store(s3_to(moto, self.bucket), StoreSettings(), engine)
        yield store
        await store.aclose()
        self.client.close()
