"""Disks of the self-test in one SR. Contents are small, and held in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from hypervisors.images import vhd_stream
from hypervisors.images.pieces import Data
from hypervisors.images.vhd_reading import Disk as VhdDisk
from hypervisors.images.vhd_reading import Present, VhdReading
from hypervisors.xen.chunks import ChunkEncoder
from hypervisors.xen.finding import Finder
from hypervisors.xen.hosts import Host
from hypervisors.xen.marks import Disk
from hypervisors.xen.pool import XenPool
from hypervisors.xen.removing import destroy_unfinished
from hypervisors.xen.repository import Repository
from hypervisors.xen.vdis import host_of
from stores.contract import Extent, MiB
from stores.errors import StorageError
from stores.transfer.engine import TransferEngine
from stores.uninterrupted import uninterrupted

SIZE = 22 * MiB
"""Bytes of a disk: a multiple of VHD's blocks, and none of what its geometry can tell."""

Parts = Mapping[int, bytes]
"""What is in a disk, by offset; the rest is zero."""


def content(size: int, *layers: Parts) -> bytes:
    """All bytes of a disk; later layers lie over earlier ones."""
    whole = bytearray(size)
    for parts in layers:
        for offset, data in parts.items():
            whole[offset : offset + len(data)] = data
    return bytes(whole)


@dataclass(frozen=True, slots=True)
class Exported:
    """What a VHD says: the disk's size, whether it is the change of another one, and its data."""

    virtual_size: int
    differencing: bool
    parts: Parts

    @property
    def present(self) -> int:
        """Bytes."""
        return sum(map(len, self.parts.values()))


@dataclass
class Place:
    """`label` is the name of every disk that is made here, and of no other. Disks in `iso` are made there at will."""

    pool: XenPool
    sr: Repository
    iso: Repository | None
    engine: TransferEngine
    label: str
    _host: Host | None = None
    _known: set[str] = field(default_factory=set)
    _tasks: set[str] = field(default_factory=set)

    # ---------------------------------------------------------------------------------------------------- making

    async def made(self, method: str, *params: Any) -> str:
        """The reference that a call gives which makes something: nobody hears of a cancellation before it has ended, so that
        what it made is found when all is removed."""
        return str(await uninterrupted(self._kept(method, *params)))

    async def _kept(self, method: str, *params: Any) -> str:
        handle = str(await self.pool.call(method, *params))
        (self._tasks if method.startswith("Async.") else self._known).add(handle)
        return handle

    async def settled(self, task: str) -> None:
        """It has ended, so that nothing is made any more, or has had time for it; then it goes."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.pool.settings.grace_s):
                await (await self.pool.connection()).tasks.ended(task)
        await self.pool.surely("task.destroy", task)
        self._tasks.discard(task)

    def record(self, size: int, sr: Repository | None = None, **further: Any) -> dict[str, Any]:
        """For VDI.create."""
        plain = {"name_description": "", "type": "user", "sharable": False, "read_only": False, "other_config": {}}
        where = {"SR": (sr or self.sr).handle, "name_label": self.label, "virtual_size": size}
        return plain | where | {"xenstore_data": {}, "sm_config": {}, "tags": []} | further

    async def disk(self, size: int = SIZE) -> Disk:
        return await self.sr.disk(await self.made("VDI.create", self.record(size)))

    async def snapshot(self, disk: Disk) -> Disk:
        return await self.sr.disk(await self.made("VDI.snapshot", disk.handle, {}))

    async def clone(self, disk: Disk) -> Disk:
        return await self.sr.disk(await self.made("VDI.clone", disk.handle, {}))

    # --------------------------------------------------------------------------------------------------- content

    async def write(self, disk: Disk, parts: Parts, host: Host | None = None, *, announced: int | None = None) -> None:
        """Frames of the chunked form, in the order of `parts`. `announced`: a Content-Length, perhaps of more than there is."""
        encoder = ChunkEncoder(skip_zeroes=False)

        async def body() -> AsyncGenerator[bytes, None]:
            for offset, data in parts.items():
                for frame in encoder.add(offset, data):
                    yield bytes(frame)
            for frame in encoder.finish():
                yield bytes(frame)

        await self.send(disk, body(), host, announced=announced)

    async def send(
        self, disk: Disk, body: AsyncGenerator[bytes, None], host: Host | None = None, *, announced: int | None = None
    ) -> None:
        """A body of the chunked form, as it is."""
        streams = (await self.pool.connection()).streams
        host = host or await self.host()
        async with aclosing(body):
            await streams.upload(disk.handle, body, image_format="raw", chunked=True, length=announced, host=host)

    async def write_vhd(self, disk: Disk, parts: Parts) -> None:
        image = b"".join(_vhd(disk.virtual_size, parts))

        async def body() -> AsyncGenerator[bytes, None]:
            for start in range(0, len(image), MiB):
                yield image[start : start + MiB]

        streams = (await self.pool.connection()).streams
        async with aclosing(body()) as pieces:
            await streams.upload(disk.handle, pieces, image_format="vhd", length=len(image), host=await self.host())

    async def read(self, disk: Disk, *, seen_by: Repository | None = None) -> bytes:
        """As raw. `seen_by`: the SR, if it is another one."""
        streams = (await self.pool.connection()).streams
        host = await self.host() if seen_by is None else await host_of(seen_by)
        async with streams.download(disk.handle, image_format="raw", host=host) as pieces:
            return b"".join([piece async for piece in pieces])

    async def read_vhd(self, disk: Disk, base: Disk | None = None) -> Exported:
        """`ImageRefused` for what is no whole VHD."""
        streams, reading = (await self.pool.connection()).streams, VhdReading()
        size, differencing, parts = 0, False, dict[int, bytes]()
        below = base.handle if base is not None else None
        async with streams.download(disk.handle, image_format="vhd", base=below, host=await self.host()) as pieces:
            async for piece in pieces:
                for event in reading.feed(piece):
                    match event:
                        case VhdDisk(virtual_size=size, parent_id=parent):
                            differencing = parent is not None
                        case Present(offset, data):
                            parts[offset] = bytes(data)
        reading.finish()
        return Exported(size, differencing, parts)

    async def host(self) -> Host | None:
        """One that sees the SR."""
        if self._host is None:
            self._host = await host_of(self.sr)
        return self._host

    # -------------------------------------------------------------------------------------------------- removing

    async def clean(self) -> list[str]:
        """Remove all disks that were made here; what could not be removed, and why."""
        try:
            for task in sorted(self._tasks):
                await self.settled(task)
            named: list[str] = await self.pool.surely("VDI.get_by_name_label", self.label)
        except StorageError as problem:
            return [f"VDIs called {self.label!r}: {problem.message}"]
        found = [await self._removed(handle) for handle in sorted({*named, *self._known})]
        return [problem for problem in found if problem is not None]

    async def _removed(self, handle: str) -> str | None:
        for sr in (self.sr, self.iso):
            if sr is None:
                continue
            try:
                (disk,) = await sr.shown([handle]) or (None,)
                if disk is not None:
                    await destroy_unfinished(sr, disk)
            except StorageError as problem:
                return f"VDI {handle}: {problem.message}"
        return None


def _vhd(size: int, parts: Parts) -> Iterator[bytes]:
    extents = [Extent(offset, len(data), zero=False) for offset, data in sorted(parts.items())]
    whole = content(size, parts)
    for piece in vhd_stream.layout(size, extents, unique_id=UUID(int=1)).pieces():
        yield whole[piece.offset : piece.offset + piece.length] if isinstance(piece, Data) else piece.content


async def found_sr(pool: XenPool, name: str) -> Repository:
    """By uuid or name. `NotFound` says which there are."""
    return await Finder(name, [pool]).found()
