"""The contract on real S3: SeaweedFS, and moto for a second server's habits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from stores.backends.s3 import S3Store
from stores.backends.s3_parts import SMALLEST_PART
from stores.contract import DataStore
from stores.secret import Secret
from stores.settings import StoreSettings
from stores.to import S3TO
from stores.transfer.engine import TransferEngine
from tests.buckets import empty, keys, made_bucket, uploads
from tests.contract.store_contract import StoreContract
from tests.contract.store_hooks import STRANGE_REFS, WriteHooks
from tests.contract.store_lists import StoreLists
from tests.contract.store_reads import StoreReads
from tests.contract.store_uploads import StoreUploads
from tests.contract.store_writes import StoreWrites
from tests.objects import refs
from tests.servers import S3Server

NAMES_WITHOUT_BACKSLASH = [ref for ref in STRANGE_REFS if "\\" not in ref]


@pytest.fixture(scope="module")
def seaweed_bucket(seaweed: S3Server) -> Iterator[tuple[Any, str]]:
    with made_bucket(seaweed) as made:
        yield made


@pytest.fixture(scope="module")
def moto_bucket(moto: S3Server) -> Iterator[tuple[Any, str]]:
    with made_bucket(moto) as made:
        yield made


class S3Hooks(WriteHooks):
    """Looks past the store with boto3."""

    upload_part = SMALLEST_PART

    client: Any
    bucket: str
    another: Callable[[], S3Store]
    opened_stores: list[S3Store]

    async def put_directly(self, ref: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.bucket, Key=ref, Body=data)

    async def read_directly(self, ref: str) -> bytes | None:
        try:
            body: bytes = self.client.get_object(Bucket=self.bucket, Key=ref)["Body"].read()
        except self.client.exceptions.NoSuchKey:
            return None
        return body

    async def everything_left(self) -> set[str]:
        unfinished = {f"upload of {key}" for key, _ in uploads(self.client, self.bucket)}
        return keys(self.client, self.bucket) | unfinished

    @asynccontextmanager
    async def opened(self, server: S3Server, made: tuple[Any, str], engine: TransferEngine) -> AsyncIterator[S3Store]:
        self.client, self.bucket = made
        to = S3TO(
            endPoint=server.endpoint,
            accessKey=server.access_key,
            secretKey=Secret(server.secret_key),
            bucketName=self.bucket,
        )
        self.another = lambda: S3Store(to, StoreSettings(), engine)
        self.opened_stores = [self.another()]
        try:
            yield self.opened_stores[0]
        finally:
            for store in self.opened_stores:
                await store.aclose()
            empty(self.client, self.bucket)

    async def reopened(self, store: DataStore) -> DataStore:
        self.opened_stores.append(self.another())
        return self.opened_stores[-1]


class TestSeaweedFS(S3Hooks, StoreContract):
    """Takes a backslash in a key for a slash, so that the names with one are left to moto."""

    @pytest.fixture
    async def store(
        self, seaweed: S3Server, seaweed_bucket: tuple[Any, str], engine: TransferEngine
    ) -> AsyncIterator[S3Store]:
        async with self.opened(seaweed, seaweed_bucket, engine) as store:
            yield store

    @pytest.mark.parametrize("ref", NAMES_WITHOUT_BACKSLASH)
    async def test_unusual_names_are_taken_literally(self, store: DataStore, ref: str) -> None:
        await super().test_unusual_names_are_taken_literally(store, ref)

    @pytest.mark.parametrize("ref", NAMES_WITHOUT_BACKSLASH)
    async def test_unusual_names_are_written_literally(self, store: DataStore, ref: str) -> None:
        await super().test_unusual_names_are_written_literally(store, ref)

    async def test_unusual_names_are_listed_literally(self, store: DataStore) -> None:
        await self._fill(NAMES_WITHOUT_BACKSLASH)
        assert await refs(store.list()) == sorted(NAMES_WITHOUT_BACKSLASH)


class TestMoto(S3Hooks, StoreLists, StoreWrites, StoreUploads):
    """Returns no checksums, so that the ETags decide. Reading is the same as from SeaweedFS, but for the names."""

    test_unusual_names_are_taken_literally = StoreReads.test_unusual_names_are_taken_literally

    @pytest.fixture
    async def store(
        self, moto: S3Server, moto_bucket: tuple[Any, str], engine: TransferEngine
    ) -> AsyncIterator[S3Store]:
        async with self.opened(moto, moto_bucket, engine) as store:
            yield store
