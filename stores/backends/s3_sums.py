"""Checksums as S3 has them. Pure, but for `Sums`, which reads the file."""

from __future__ import annotations

import base64
import hashlib
import re
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from stores.transfer.engine import TransferEngine
from stores.transfer.parts import Parts
from stores.transfer.source import SourceFile


def crc64(value: int) -> str:
    """A CRC-64/NVME as S3 writes it: base64 of eight bytes, big-endian."""
    return base64.b64encode(value.to_bytes(8, "big")).decode()


def crc64nvme(data: memoryview, before: int = 0) -> int:
    """The CRC-64/NVME of `data` after bytes whose CRC is `before`."""
    from awscrt import checksums  # by now imported by the client, in a thread

    value: int = checksums.crc64nvme(data, before)
    return value


def joined_crc(parts: Sequence[tuple[int, int]]) -> int:
    """The CRC-64/NVME of parts in order, from the CRC and the length of each."""
    from awscrt import checksums

    crc = 0
    for part, length in parts:
        crc = checksums.combine_crc64nvme(crc, part, length)
    return crc


def multipart_etag(parts: Sequence[str]) -> str | None:
    """The ETag of an object made of parts with these ETags, where those are MD5s in hex; None where they are not."""
    if not all(re.fullmatch("[0-9a-f]{32}", part) for part in parts):
        return None
    joined = b"".join(bytes.fromhex(part) for part in parts)
    return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(parts)}"


def md5_of(views: Sequence[memoryview]) -> str:
    """Hex MD5. Blocking."""
    digest = hashlib.md5(usedforsecurity=False)
    for view in views:
        digest.update(view)
    return digest.hexdigest()


class _Digest(Protocol):
    def update(self, data: memoryview, /) -> None: ...


class _Crc:
    value = 0

    def update(self, data: memoryview, /) -> None:
        self.value = crc64nvme(data, self.value)


class Sums:
    """Checksums of the parts of a file, each read once for each sort, by threads of the disk's."""

    def __init__(self, engine: TransferEngine, source: SourceFile, cut: Parts) -> None:
        self._engine = engine
        self._source = source
        self._cut = cut
        self._crcs: dict[int, int] = {}
        self._md5s: dict[int, str] = {}

    async def crc(self, number: int) -> int:
        if number not in self._crcs:
            digest = _Crc()
            await self._read(number, digest)
            self._crcs[number] = digest.value
        return self._crcs[number]

    async def md5(self, number: int) -> str:
        if number not in self._md5s:
            digest = hashlib.md5(usedforsecurity=False)
            await self._read(number, digest)
            self._md5s[number] = digest.hexdigest()
        return self._md5s[number]

    async def whole_crc(self) -> int:
        numbers = range(1, self._cut.count + 1)
        return joined_crc([(await self.crc(number), self._cut.length(number)) for number in numbers])

    async def whole_etag(self, *, parts: bool) -> str | None:
        """The ETag that S3 gives to the file, sent in parts or at once."""
        md5s = [await self.md5(number) for number in range(1, self._cut.count + 1)]
        return multipart_etag(md5s) if parts else md5s[0]

    async def _read(self, number: int, digest: _Digest) -> None:
        stopped = threading.Event()
        buffer = await self._engine.buffers.acquire(self)
        try:
            call: Callable[[], None] = partial(self._pass, *self._cut.range(number), buffer, digest, stopped)
            await self._engine.disk.of(self).run(call, abort=stopped.set)
        finally:
            self._engine.buffers.release(self, buffer)

    def _pass(self, start: int, end: int, buffer: memoryview, digest: _Digest, stopped: threading.Event) -> None:
        for at in range(start, end, len(buffer)):
            if stopped.is_set():
                return
            view = buffer[: min(len(buffer), end - at)]
            self._source.read(at, view)
            digest.update(view)
