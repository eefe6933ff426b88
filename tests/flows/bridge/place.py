"""What the bridge's tests export, and how they run a tool on it."""

from __future__ import annotations

import asyncio
import hashlib
import random
import subprocess
from collections.abc import Sequence
from pathlib import Path

from stores.contract import Extent, MiB, ObjectInfo, RangeReader
from stores.errors import ObjectChanged, Unavailable
from tests.doubles.nbd_client import READ, NbdClient

EPERM, EIO, EINVAL = 1, 5, 22
HOLE = 3 * MiB


def disk(seed: int = 1) -> bytes:
    """10 MiB and a bit: data, a hole of 3 MiB from 4 MiB on, data."""
    rng = random.Random(seed)
    return rng.randbytes(4 * MiB) + bytes(HOLE) + rng.randbytes(3 * MiB + 512)


class Source(RangeReader):
    """Content in memory, with known holes. `error` fails reads past `good`; `gate` holds them up."""

    def __init__(self, content: bytes, holes: Sequence[tuple[int, int]] = ()) -> None:
        self.info = ObjectInfo("object", len(content), version="1")
        self.content = memoryview(content)
        self.holes = holes
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Unavailable | ObjectChanged | None = None
        self.good = 0
        self.reads: list[tuple[int, int]] = []
        self.under_way = 0
        self.most = 0

    @property
    def fetched(self) -> int:
        return sum(length for _, length in self.reads)

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        self.reads.append((offset, len(buffer)))
        self.under_way += len(buffer)
        self.most = max(self.most, self.under_way)
        try:
            await self.gate.wait()
            await asyncio.sleep(0)
            if self.error is not None and offset + len(buffer) > self.good:
                raise self.error
            buffer[:] = self.content[offset : offset + len(buffer)]
        finally:
            self.under_way -= len(buffer)

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        found, at, end = [], offset, offset + length
        for start, stop in self.holes:
            start, stop = max(start, at), min(stop, end)
            if start >= stop:
                continue
            if start > at:
                found.append(Extent(at, start - at, zero=False))
            found.append(Extent(start, stop - start, zero=True))
            at = stop
        return [*found, Extent(at, end - at, zero=False)] if at < end else found


def url(socket: Path) -> str:
    return f"nbd+unix:///?socket={socket}"


async def tool(*argv: object) -> bytes:
    """Standard output of a tool that succeeds."""
    process = await asyncio.create_subprocess_exec(
        *map(str, argv), stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output


def sha256(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


async def whole(client: NbdClient, size: int, step: int = MiB) -> bytes:
    """Everything, read in order."""
    content = bytearray(size)
    for offset in range(0, size, step):
        reply = await client.ask(READ, offset, min(step, size - offset))
        assert reply.error == 0
        if client.structured:
            for at, data in reply.data.items():
                content[at : at + len(data)] = data
        else:
            content[offset : offset + len(reply.data[0])] = reply.data[0]
    return bytes(content)
