"""S3 stores to try, and what is left in their buckets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from stores.backends.connecting import Resolve, system_resolve
from stores.backends.s3 import S3Store
from stores.secret import Secret
from stores.settings import StoreSettings
from stores.to import S3TO
from stores.transfer.engine import TransferEngine
from tests.buckets import keys, uploads
from tests.servers import S3Server

QUICK = StoreSettings(connect_timeout=5, read_timeout=5, attempts=3)


@asynccontextmanager
async def opened(
    engine: TransferEngine,
    server: S3Server,
    bucket: str,
    *,
    settings: StoreSettings = QUICK,
    presign_s: int = 900,
    resolve: Resolve = system_resolve,
    **fields: Any,
) -> AsyncIterator[S3Store]:
    to = S3TO(
        **{
            "endPoint": server.endpoint,
            "accessKey": server.access_key,
            "secretKey": Secret(server.secret_key),
            "bucketName": bucket,
            **fields,
        }
    )
    store = S3Store(to, settings, engine, presign_s=presign_s, resolve=resolve)
    try:
        yield store
    finally:
        await store.aclose()


def left(server: S3Server, bucket: str) -> tuple[set[str], list[str]]:
    """Keys, and keys of unfinished multipart uploads."""
    client = server.client()
    try:
        return keys(client, bucket), [key for key, _ in uploads(client, bucket)]
    finally:
        client.close()
