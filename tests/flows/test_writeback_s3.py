"""From a command's write to an object in S3 by way of the upload queue: the resolver, a real pool, a real server, and a network
in between that fails."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from stores.cache.cache import Cache, Outcome
from stores.cache.schema import UploadState
from stores.cache.settings import WritebackSettings
from stores.cache.writeback.errors import AlreadyStaged, UploadPending
from stores.cache.writeback.queue import UploadQueue
from stores.contract import Kind, LocalPath, MiB, ObjectInfo, PendingFile
from stores.errors import RequirementNotMet
from stores.resolver import Durability, Resolver
from stores.settings import StoreSettings
from stores.to import S3TO
from stores.transfer.engine import TransferEngine
from tests.buckets import keys, uploads
from tests.doubles.caches import Requests, nothing_left, pool_settings, running
from tests.doubles.fault_proxy import FaultProxy
from tests.objects import content
from tests.servers import S3Server

REF = "backups/volume"
SIZE = 11 * MiB + 7
PATH = [Kind.LOCAL_PATH]
WAIT_S = 60.0
SETTINGS = WritebackSettings(first_retry_s=0.05, last_retry_s=0.2, first_probe_s=0.05, last_probe_s=0.2)


@pytest.fixture
def bucket(emptied_bucket: tuple[Any, str]) -> tuple[Any, str]:
    return emptied_bucket


@pytest.fixture
def data() -> bytes:
    return content(SIZE, 4)


class Agent:
    """One process: resolver, cache and queue."""

    def __init__(self, resolver: Resolver, queue: UploadQueue, cache: Cache, requests: Requests) -> None:
        self.requests = requests
        self.resolver = resolver
        self.queue = queue
        self.cache = cache

    async def write(
        self, to: S3TO, data: bytes, durability: Durability, *, stored_s: float | None = None
    ) -> ObjectInfo:
        """As a command does that may have been there before."""
        store = self.resolver.store(to)
        joined = await self.resolver.staged(store, REF, token="command", durability=durability, stored_s=stored_s)
        if joined is not None:
            return joined
        async with self.resolver.create(
            store,
            REF,
            PATH,
            token="command",
            size=len(data),
            durability=durability,
            store_to=to,
            wait_s=0.0,
            stored_s=stored_s,
        ) as pending:
            file = cast(PendingFile, pending)
            file.path.write_bytes(data)
            return await file.commit()


@asynccontextmanager
async def agent(root: Path) -> AsyncIterator[Agent]:
    engine = TransferEngine()
    async with running(pool_settings(root / "pool", room=64 * MiB)) as pool:
        requests = Requests()
        cache = Cache([pool], engine, observer=requests)
        settings = StoreSettings(connect_timeout=2, read_timeout=5, attempts=1)
        resolver = Resolver(settings, engine, cache=cache)
        queue = UploadQueue([pool], SETTINGS, credentials=root / "credentials", open_store=resolver.store, tick_s=0.2)
        resolver.upload_through(queue)
        await queue.start()
        try:
            yield Agent(resolver, queue, cache, requests)
        finally:
            await queue.aclose()
            await cache.aclose()
            await resolver.aclose()
            await engine.aclose()


@pytest.fixture
def to(seaweed: S3Server, bucket: tuple[Any, str]) -> S3TO:
    return bucket_of(seaweed, bucket[1], seaweed.port)


def bucket_of(server: S3Server, name: str, port: int, secret: str | None = None) -> S3TO:
    return S3TO.model_validate(
        {
            "bucketName": name,
            "endPoint": f"http://127.0.0.1:{port}",
            "accessKey": server.access_key,
            "secretKey": secret or server.secret_key,
            "maxErrorRetry": 0,
        }
    )


def is_there(bucket: tuple[Any, str], data: bytes) -> bool:
    """The object, and nothing else: no parts, no records."""
    client, name = bucket
    body: bytes = client.get_object(Bucket=name, Key=REF)["Body"].read()
    assert hashlib.sha256(body).digest() == hashlib.sha256(data).digest()
    assert keys(client, name) == {REF}
    assert uploads(client, name) == []
    return True


async def test_a_file_for_a_store_that_takes_none_is_stored_when_that_is_said(
    memory: Path, to: S3TO, bucket: tuple[Any, str], data: bytes
) -> None:
    async with agent(memory) as here:
        info = await here.write(to, data, Durability.STORED)
        assert (info.size, info.upload) == (SIZE, None)
        assert is_there(bucket, data)
        again = await here.write(to, data, Durability.STORED)
        assert again == info, "the same write again is the same one"
        store = here.resolver.store(to)
        async with here.resolver.open(store, await store.stat(REF), PATH) as shown:
            assert cast(LocalPath, shown).path.read_bytes() == data
        assert here.requests.outcomes == {Outcome.HIT: 1}, "nothing was fetched"
        await nothing_left(here.cache.pools[0])


async def test_staged_is_answered_at_once_and_stored_in_the_end(
    memory: Path, seaweed: S3Server, bucket: tuple[Any, str], data: bytes
) -> None:
    async with FaultProxy(seaweed.port) as proxy:
        to = bucket_of(seaweed, bucket[1], proxy.port)
        proxy.refuse = True
        async with agent(memory) as here:
            info = await here.write(to, data, Durability.STAGED)
            assert info.upload is not None
            assert (await here.write(to, data, Durability.STAGED)).upload == info.upload
            with pytest.raises(UploadPending) as pending:
                await here.write(to, data, Durability.STORED, stored_s=0.5)
            assert pending.value.details["upload"] == info.upload
            assert keys(*bucket) == set()
            with pytest.raises(AlreadyStaged):
                async with here.resolver.create(
                    here.resolver.store(to), REF, PATH, token="command", store_to=to, durability=Durability.STAGED
                ):
                    pass
        # The next process, with the network up again but slow, dies in the middle; the one after it goes on.
        proxy.refuse = False
        proxy.rate_up = 4 * MiB
        async with agent(memory) as here:
            async with asyncio.timeout(WAIT_S):
                while (await here.queue.figures()).attempts == 0 or not uploads(*bucket):
                    await asyncio.sleep(0.05)
            await asyncio.sleep(0.5)
            assert (await here.queue.show(info.upload)).state is UploadState.SENDING
        proxy.rate_up = None
        async with agent(memory) as here:
            stored = await here.queue.stored(info.upload, deadline_s=WAIT_S)
            assert stored.size == SIZE
            assert is_there(bucket, data)
            (event,) = await here.queue.events()
            assert (event.id, event.state, event.version) == (info.upload, UploadState.STORED, stored.version)
            await nothing_left(here.cache.pools[0])


async def test_credentials_that_were_changed_stop_an_upload_until_a_command_brings_new_ones(
    memory: Path, seaweed: S3Server, to: S3TO, bucket: tuple[Any, str], data: bytes
) -> None:
    wrong = bucket_of(seaweed, bucket[1], seaweed.port, secret="no longer the right one")
    async with agent(memory) as here:
        info = await here.write(wrong, data, Durability.STAGED)
        assert info.upload is not None
        async with asyncio.timeout(WAIT_S):
            while (await here.queue.show(info.upload)).state is not UploadState.REFUSED:
                await asyncio.sleep(0.05)
        with pytest.raises(UploadPending) as pending:
            await here.queue.stored(info.upload, deadline_s=0)
        assert pending.value.details["last_error"] == "AccessDenied"
    async with agent(memory) as here:
        assert (await here.queue.show(info.upload)).state is UploadState.REFUSED
        here.resolver.store(to)  # as any command does that names the store
        await here.queue.stored(info.upload, deadline_s=WAIT_S)
        assert is_there(bucket, data)


async def test_cancelling_leaves_nothing_in_the_store(
    memory: Path, seaweed: S3Server, bucket: tuple[Any, str], data: bytes
) -> None:
    async with FaultProxy(seaweed.port) as proxy:
        proxy.rate_up = 4 * MiB
        async with agent(memory) as here:
            info = await here.write(bucket_of(seaweed, bucket[1], proxy.port), data, Durability.STAGED)
            assert info.upload is not None
            async with asyncio.timeout(WAIT_S):
                while not uploads(*bucket):
                    await asyncio.sleep(0.05)
                await here.queue.cancel(info.upload)
                while (await here.queue.show(info.upload)).state is not UploadState.CANCELLED:
                    await asyncio.sleep(0.05)
            assert keys(*bucket) == set()
            assert uploads(*bucket) == []
            await nothing_left(here.cache.pools[0])


async def test_what_cannot_be_staged_is_refused_before_a_byte_moves(memory: Path, to: S3TO) -> None:
    async with agent(memory) as here:
        store = here.resolver.store(to)
        for changes in (
            {"kinds": [Kind.BYTE_STREAM], "durability": Durability.STAGED, "store_to": to},
            {"kinds": PATH, "durability": Durability.STAGED},
            {"kinds": PATH, "durability": Durability.STORED},
        ):
            with pytest.raises(RequirementNotMet):
                here.resolver.create(store, REF, changes.pop("kinds"), token="t", **changes)  # type: ignore[arg-type]
    engine = TransferEngine()
    without = Resolver(StoreSettings(), engine)
    with pytest.raises(RequirementNotMet, match=r"cache\.pools"):
        without.create(
            without.store(to), REF, [*PATH, Kind.BYTE_STREAM], token="t", durability=Durability.STAGED, store_to=to
        )
    assert await without.staged(without.store(to), REF, token="t", durability=Durability.STORED) is None
    await without.aclose()
    await engine.aclose()
