"""Content for objects in tests, and short ways to send, read and list them."""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from stores.contract import ByteStream, DataStore, Kind, MiB, ObjectInfo, PendingStream, RangeReader

TOKEN = "command-1"


@functools.lru_cache(maxsize=8)
def content(size: int, seed: int = 1) -> bytes:
    """Reproducible bytes that do not compress and do not repeat."""
    return random.Random(seed).randbytes(size)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def zero(data: bytes | bytearray | memoryview) -> bool:
    """Whether all of it is. Quick, also for megabytes: `any` looks at one byte at a time."""
    return bytes(data).count(0) == len(data)


async def read_stream(stream: ByteStream) -> bytes:
    return b"".join([bytes(piece) async for piece in stream])


async def read_all(store: DataStore, info: ObjectInfo) -> bytes:
    """The object as one stream."""
    async with store.present(info, Kind.BYTE_STREAM) as stream:
        assert isinstance(stream, ByteStream)
        return await read_stream(stream)


async def consume(store: DataStore, info: ObjectInfo, kind: Kind) -> None:
    """Open the object in that form, and read all of it where that is done through us."""
    async with store.present(info, kind) as presentation:
        if isinstance(presentation, RangeReader):
            await presentation.read(0, info.size or 0)
        elif isinstance(presentation, ByteStream):
            await read_stream(presentation)


@asynccontextmanager
async def sending(
    store: DataStore, ref: str, *, token: str = TOKEN, size: int | None = None, replace: bool = False
) -> AsyncIterator[PendingStream]:
    """`store.write` as a byte stream."""
    async with store.write(ref, Kind.BYTE_STREAM, token=token, size=size, replace=replace) as pending:
        assert pending.kind is Kind.BYTE_STREAM
        yield cast(PendingStream, pending)


async def send(
    store: DataStore, ref: str, data: bytes, *, size: int | None = None, replace: bool = False
) -> ObjectInfo:
    """`data` as one object, in writes of a MiB."""
    async with sending(store, ref, size=size, replace=replace) as pending:
        for start in range(0, len(data), MiB):
            await pending.write(memoryview(data)[start : start + MiB])
        return await pending.commit()


async def refs(listing: AsyncIterator[ObjectInfo]) -> list[str]:
    return [info.ref async for info in listing]
