"""Uploads to S3 through a proxy that disturbs them, one request after the other, and what they may say then."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias, cast

from stores.backends.s3 import S3Store
from stores.backends.s3_parts import S3_CUT, Cut
from stores.contract import Kind, MiB, ObjectInfo, PendingStream, Silent
from stores.errors import StorageError
from stores.secret import Secret
from stores.settings import StoreSettings
from stores.to import S3TO
from stores.transfer.engine import TransferEngine
from stores.transfer.sending import send_all
from tests.buckets import empty
from tests.doubles.request_proxy import Fault, RequestProxy, Seen
from tests.objects import sha
from tests.servers import S3Server

Way: TypeAlias = Callable[[S3Store, Path], Awaitable[ObjectInfo]]

REF = "dir/object"
TOKEN = "command"


@asynccontextmanager
async def opened(
    engine: TransferEngine,
    server: S3Server,
    bucket: str,
    *,
    port: int | None = None,
    tries: int = 1,
    tls: bool = False,
    cut: Cut = S3_CUT,
    **fields: Any,
) -> AsyncIterator[S3Store]:
    """A store of a process of its own. Small files go in parts, too."""
    plain = f"http://127.0.0.1:{port or server.port}"
    to = S3TO(
        endPoint=server.tls_endpoint if tls else plain,
        accessKey=server.access_key,
        secretKey=Secret(server.secret_key),
        bucketName=bucket,
        **({"maxErrorRetry": tries - 1, "maxSingleUploadSizeInBytes": 0} | fields),
    )
    settings = StoreSettings(connect_timeout=5, read_timeout=5, ca_file=server.ca_file)
    store = S3Store(to, settings, engine, cut=cut)
    try:
        yield store
    finally:
        await store.aclose()


async def upload(store: S3Store, source: Path) -> ObjectInfo:
    async with store.upload(REF, source, token=TOKEN) as pending:
        return await send_all(pending, progress=Silent())


async def stream(store: S3Store, source: Path) -> ObjectInfo:
    data = source.read_bytes()
    async with store.write(REF, Kind.BYTE_STREAM, token=TOKEN, size=len(data)) as pending:
        sending = cast(PendingStream, pending)
        for start in range(0, len(data), MiB):
            await sending.write(memoryview(data)[start : start + MiB])
        return await sending.commit()


def stored(bucket: tuple[Any, str]) -> str | None:
    client, name = bucket
    try:
        body: bytes = client.get_object(Bucket=name, Key=REF)["Body"].read()
    except client.exceptions.NoSuchKey:
        return None
    return sha(body)


async def outcome(way: Way, store: S3Store, source: Path) -> ObjectInfo | StorageError:
    try:
        return await way(store, source)
    except StorageError as error:
        return error


@asynccontextmanager
async def walk(
    engine: TransferEngine,
    seaweed: S3Server,
    bucket: tuple[Any, str],
    way: Way,
    source: Path,
    fault: Fault,
    cut: Cut = S3_CUT,
) -> AsyncIterator[tuple[AsyncIterator[Seen], S3Store]]:
    """One upload after the other, each disturbed at the next request, and honest about its end: which request that was. And
    the store as the next process sees it."""

    async def disturbed() -> AsyncIterator[Seen]:
        await way(store, source)
        count = len(proxy.requests)
        assert count >= 7
        empty(*bucket)
        for number in range(1, count + 1):
            proxy.start_over()
            proxy.plan = lambda at, request, number=number: fault if at == number else None  # type: ignore[misc]
            said = await outcome(way, store, source)
            honest(said, stored(bucket), sha(source.read_bytes()))
            yield proxy.requests[number - 1]
            empty(*bucket)

    async with (
        opened(engine, seaweed, bucket[1]) as next_store,
        RequestProxy(seaweed.port) as proxy,
        opened(engine, seaweed, bucket[1], port=proxy.port, cut=cut) as store,
    ):
        yield disturbed(), next_store


def honest(said: ObjectInfo | StorageError, found: str | None, wanted: str) -> None:
    """Nothing is called stored that is not; what failed can be tried again, and has left no wrong object."""
    if isinstance(said, StorageError):
        assert said.retry == "yes", repr(said)
        assert found in (None, wanted)
    else:
        assert (said.size, found) == (300_000, wanted)


def carried_out(fault: Fault) -> bool:
    return fault in (Fault.LATE_500, Fault.LOST, Fault.DEAD)
