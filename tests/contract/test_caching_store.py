"""The store contract over a cache: needed, where everything but files is the inner store's; and preferred, where ranges and
streams come from the cache as well."""

from __future__ import annotations

import abc
import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from stores.backends.filesystem import FilesystemStore
from stores.cache.cache import Cache
from stores.cache.proxy import CachingStore
from stores.contract import DataStore, Kind, LocalPath, MiB
from stores.errors import NotFound, ObjectChanged
from stores.negotiation import CacheUse
from stores.transfer.engine import TransferEngine
from tests.contract.store_lists import StoreLists
from tests.contract.store_reads import StoreReads
from tests.contract.store_writes import StoreWrites
from tests.contract.test_filesystem_store import DirectoryHooks
from tests.contract.test_memory_store import MemoryHooks
from tests.contract.test_s3_store import NAMES_WITHOUT_BACKSLASH, S3Hooks, seaweed_bucket
from tests.doubles.caches import cache_over, pool_settings
from tests.objects import content
from tests.servers import S3Server

__all__ = ["seaweed_bucket"]


@pytest.fixture
async def cache(engine: TransferEngine) -> AsyncIterator[Cache]:
    """In memory: there are many tests here, and each makes a pool. `tests/flows` has pools on a disk."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="cache-") as directory:
        async with cache_over(engine, pool_settings(Path(directory) / "pool")) as cache:
            yield cache


class Files(StoreReads):
    """What the cache adds to every store."""

    @abc.abstractmethod
    async def delete_directly(self, ref: str) -> None:
        """Remove an object."""

    async def expect_no_more_tasks(self, before: set[asyncio.Task[Any]]) -> None:
        """A pool's upkeep begins and ends tasks at any time, short ones."""
        give_up = time.monotonic() + 10
        while not asyncio.all_tasks() <= before and time.monotonic() < give_up:
            await asyncio.sleep(0.01)
        assert asyncio.all_tasks() <= before

    async def test_every_object_is_a_file(self, store: CachingStore) -> None:
        assert Kind.LOCAL_PATH in store.offers()
        await self.put_directly("dir/object", content(3_000_000))
        for _ in range(2):
            info = await store.stat("dir/object")
            async with store.present(info, Kind.LOCAL_PATH) as presentation:
                assert isinstance(presentation, LocalPath)
                assert presentation.info == info
                assert presentation.path.read_bytes() == content(3_000_000)

    async def test_a_changed_object_is_another_file(self, store: CachingStore) -> None:
        for seed in (1, 2, 3):
            await self.put_directly("object", content(5000, seed))
            async with store.present(await store.stat("object"), Kind.LOCAL_PATH) as presentation:
                assert isinstance(presentation, LocalPath)
                assert presentation.path.read_bytes() == content(5000, seed)

    async def test_a_deleted_object_is_gone(self, store: CachingStore) -> None:
        await self.put_directly("object", content(5000))
        async with store.present(await store.stat("object"), Kind.LOCAL_PATH):
            pass
        await self.delete_directly("object")
        with pytest.raises(NotFound):
            await store.stat("object")


class Preferred(Files):
    """What was cached may be given although the store has another version by now, as long as the two are not mixed."""

    async def test_changed_object_is_not_opened_with_old_info(self, store: DataStore) -> None:
        await self.put_directly("object", content(5000, 1))
        info = await store.stat("object")
        await self.put_directly("object", content(5000, 2))
        for kind in (Kind.RANGE_READER, Kind.BYTE_STREAM, Kind.LOCAL_PATH):
            with pytest.raises(ObjectChanged):
                async with store.present(info, kind):
                    pass


class TestNeededOverMemory(MemoryHooks, Files, StoreLists, StoreWrites):
    @pytest.fixture
    def store(self, cache: Cache) -> CachingStore:
        return CachingStore(self.memory, cache, wait_s=30)

    async def delete_directly(self, ref: str) -> None:
        await self.memory.delete(ref)


class TestPreferredOverMemory(MemoryHooks, Preferred):
    @pytest.fixture
    def store(self, cache: Cache) -> CachingStore:
        return CachingStore(self.memory, cache, use=CacheUse.PREFERRED, wait_s=30)

    async def delete_directly(self, ref: str) -> None:
        await self.memory.delete(ref)


class TestPreferredOverDirectory(DirectoryHooks, Preferred):
    sparse_size = 8 * MiB + 17  # what fits into the cache

    @pytest.fixture(autouse=True)
    def directory(self, tmp_path: Path) -> None:
        self.root = tmp_path / "store"
        self.root.mkdir()

    @pytest.fixture
    def store(self, engine: TransferEngine, cache: Cache) -> CachingStore:
        inner = FilesystemStore(self.root, engine, id="directory:test", allowed=[self.root])
        return CachingStore(inner, cache, use=CacheUse.PREFERRED, wait_s=30)

    async def delete_directly(self, ref: str) -> None:
        (self.root / ref).unlink()


class TestNeededOverS3(S3Hooks, Files):
    @pytest.fixture
    async def store(
        self, seaweed: S3Server, seaweed_bucket: tuple[Any, str], engine: TransferEngine, cache: Cache
    ) -> AsyncIterator[CachingStore]:
        async with self.opened(seaweed, seaweed_bucket, engine) as inner:
            yield CachingStore(inner, cache, wait_s=30)

    async def delete_directly(self, ref: str) -> None:
        self.client.delete_object(Bucket=self.bucket, Key=ref)

    @pytest.mark.parametrize("ref", NAMES_WITHOUT_BACKSLASH)
    async def test_unusual_names_are_taken_literally(self, store: DataStore, ref: str) -> None:
        await super().test_unusual_names_are_taken_literally(store, ref)
