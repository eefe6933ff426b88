"""Content for a new disk of the pool: read and understood here, and sent by chunked PUT, without what is zero and without a
file in between.

| the source comes as | and is read |
| --- | --- |
| ranges of plain bytes, or of a disk | several pieces at once, and of holes nothing |
| a stream of plain bytes, or a VHD | in order |
| either of the two, compressed | in order, expanded |
| anything else: ranges, a file, the bridge's NBD export | as ranges of its disk (`hypervisors.qemu.disks`) |

However large the disk, memory is that of the engine's buffers and a few pieces more. The end of the body, without which the
host takes nothing for done, is sent only when the source was whole and had the right checksum. Where the pool's settings want
it, the disk is then read back and compared with what was sent.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from hypervisors.contract import OperationUnsupported, Source
from hypervisors.images.parsing import SECTOR, refuse, truncated
from hypervisors.images.vhd_reading import Disk, Event, Present, VhdReading
from hypervisors.landing import verify
from hypervisors.qemu.disks import ForeignDisks
from hypervisors.qemu.nodes import known_format
from hypervisors.xen.chunks import END, ChunkEncoder
from hypervisors.xen.content_sum import CellJoiner, ContentSum
from hypervisors.xen.exporting import exported_vhd
from hypervisors.xen.hosts import Host
from hypervisors.xen.placing import NewContent
from hypervisors.xen.repository import Repository
from hypervisors.xen.streams import DiskStreams
from hypervisors.xen.vdis import host_of
from hypervisors.xen.wire import Exchange
from stores.contract import ByteStream, Progress, RangeReader
from stores.errors import IntegrityError, TooLarge
from stores.streams import presented
from stores.to import ImageFormat
from stores.tools.process import ToolRunner
from stores.transfer.compression import expand
from stores.transfer.digests import Checksum, Digester
from stores.transfer.engine import TransferEngine
from stores.transfer.pieces import known_size

Make: TypeAlias = Callable[[int], Awaitable[str]]
"""Makes the disk, of at least so many bytes, all of them zero; gives its reference or uuid."""

_PLAIN = frozenset({ImageFormat.RAW, ImageFormat.ISO})
_IN_ORDER = _PLAIN | {ImageFormat.VHD}


@dataclass(frozen=True, slots=True)
class NewDisk:
    """A disk of the pool that is made as soon as its size is known. `host`: one that sees its SR, if that is known. `verified`:
    it is to be read back and compared."""

    streams: DiskStreams
    make: Make
    host: Host | None = None
    verified: bool = False


@dataclass(frozen=True, slots=True)
class Imported:
    """`virtual_size` of the source in bytes; `digests` of its object, as far as its bytes passed through here."""

    virtual_size: int
    digests: dict[str, str]


async def new_disk(sr: Repository, make: Make) -> NewDisk:
    """Of that SR, as its pool's settings want it. ISOs, which XAPI exports in no form of its own, are not verified."""
    connection = await sr.pool.connection()
    verified = sr.pool.settings.verify_imports and not sr.library
    return NewDisk(connection.streams, make, await host_of(sr), verified)


class Importer:
    """Cancelled or failed at any moment, it leaves nothing but the disk, whose content is then undefined."""

    def __init__(self, engine: TransferEngine, tools: ToolRunner, runtime_dir: Path, *, limit: int) -> None:
        """Sockets of exports live below `runtime_dir`. `limit`: the most bytes that a disk may have."""
        self._engine = engine
        self._disks = ForeignDisks(engine, tools, runtime_dir)
        self._limit = limit

    async def bring(
        self, source: Source, target: NewDisk, *, checksum: Checksum | None, progress: Progress
    ) -> Imported:
        """The content of an image that the gate has let pass, without its backing chain.

        `checksum` is of the object's bytes: `ChecksumMismatch`, where they pass through here; where it is read at random,
        the caller sees to it. `ImageRefused` for an image that is damaged or cannot be read as it comes, `TooLarge`,
        `IntegrityError`, `OperationUnsupported` for a format that cannot; otherwise what the source, qemu-nbd and
        `DiskStreams.sending` raise.
        """
        given, spec = source.presentation, source.spec
        image_format = known_format(source)
        at_random = image_format not in _IN_ORDER and isinstance(given, RangeReader) and spec.compression is None
        if at_random or not isinstance(given, RangeReader | ByteStream):
            async with self._disks.opened(source) as disk:
                return await self.fill(disk, target, checksum=None, progress=progress)
        if image_format in _PLAIN and spec.compression is None and isinstance(given, RangeReader):
            return await self.fill(given, target, checksum=checksum, progress=progress)
        digester = Digester([checksum.algorithm] if checksum is not None else [])
        if image_format is ImageFormat.VHD:
            size = await self._vhd(source, target, digester, checksum, progress)
        elif image_format in _PLAIN:
            size = await self._plain(source, target, digester, checksum, progress)
        else:
            raise OperationUnsupported(
                f"{given.info.ref} is a {image_format} image, which is read at random: not as a {given.kind}, or compressed",
                ref=given.info.ref,
                format=image_format,
            )
        return Imported(size, digester.hexdigests())

    async def fill(
        self, disk: RangeReader, target: NewDisk, *, checksum: Checksum | None, progress: Progress
    ) -> Imported:
        """The bytes of `disk`, of which holes are not read."""
        size = self._bounded(known_size(disk))
        progress.phase("transfer", size)
        wanted = [checksum.algorithm] if checksum is not None else []
        vdi, sums = await target.make(size), _sums(target)
        async with _sending(target, vdi) as exchange:
            place = NewContent(exchange, size, sums)
            sent = await self._engine.deliver(disk, place, digests=wanted, progress=progress)
            verify(checksum, sent.digests, disk.info.ref)
            await exchange.send(END)
        await self._read_back(target, vdi, sums, progress)
        return Imported(size, sent.digests)

    # ------------------------------------------------------------------------------------------------------ in order

    async def _vhd(
        self, source: Source, target: NewDisk, digester: Digester, checksum: Checksum | None, progress: Progress
    ) -> int:
        sums = _sums(target)
        frames = _VhdFrames(sums)
        async with self._content(source, digester, progress) as pieces:
            disk, early = await self._begun(frames, pieces)
            vdi = await target.make(self._bounded(disk.virtual_size))
            async with _sending(target, vdi) as exchange:
                await _put(exchange, early)
                async for piece in pieces:
                    await _put(exchange, frames.feed(piece))
                last = frames.finish()
                verify(checksum, digester.hexdigests(), source.presentation.info.ref)
                await _put(exchange, last)
        await self._read_back(target, vdi, sums, progress)
        return disk.virtual_size

    async def _begun(self, frames: _VhdFrames, pieces: AsyncIterator[memoryview]) -> tuple[Disk, list[bytes]]:
        """What a VHD says of itself, and the frames that came with that."""
        early: list[bytes] = []
        async for piece in pieces:
            early += await self._engine.run(lambda some: [bytes(frame) for frame in frames.feed(some)], piece)
            if frames.disk is not None:
                return frames.disk, early
        raise truncated("VHD dynamic disk header")

    async def _plain(
        self, source: Source, target: NewDisk, digester: Digester, checksum: Checksum | None, progress: Progress
    ) -> int:
        size = self._bounded(await self._plain_size(source, progress))
        sums = _sums(target)
        encoder = ChunkEncoder(skip_zeroes=True, sums=sums)
        ref = source.presentation.info.ref
        async with self._content(source, digester, progress) as pieces:
            vdi = await target.make(size)
            async with _sending(target, vdi) as exchange:
                position = 0
                async for piece in pieces:
                    if position + len(piece) > size:
                        raise _other_size(ref, size, f"at least {position + len(piece)}")
                    await _put(exchange, encoder.add(position, piece))
                    position += len(piece)
                if position != size:
                    raise _other_size(ref, size, f"{position}")
                verify(checksum, digester.hexdigests(), ref)
                await _put(exchange, encoder.add(position, bytes(-size % SECTOR)))
                await _put(exchange, encoder.finish())
        await self._read_back(target, vdi, sums, progress)
        return size

    async def _plain_size(self, source: Source, progress: Progress) -> int:
        """Of what comes compressed, it shows only at the end, and the disk is made before: then it is read twice."""
        given, spec = source.presentation, source.spec
        size = spec.virtual_size if spec.compression is not None else given.info.size
        if size is not None:
            return size
        if not isinstance(given, RangeReader):
            raise OperationUnsupported(
                f"the size of the disk in {given.info.ref} shows only at the end of it, and the disk has to be made before:"
                " use a store that can be read at random, or a VHD, which begins with its size",
                ref=given.info.ref,
            )
        async with self._content(source, Digester([]), progress, phase="measure") as pieces:
            return sum([len(piece) async for piece in pieces])

    @asynccontextmanager
    async def _content(
        self, source: Source, digester: Digester, progress: Progress, *, phase: str = "transfer"
    ) -> AsyncIterator[AsyncGenerator[memoryview, None]]:
        """The object in order, expanded. What is digested and told as progress are its own bytes."""
        given = source.presentation
        assert isinstance(given, RangeReader | ByteStream)
        progress.phase(phase, given.info.size)

        async def passing(stream: ByteStream) -> AsyncGenerator[memoryview, None]:
            async for piece in stream:
                await self._engine.run(digester.update, piece)
                yield piece
                progress.advance(len(piece))

        async with (
            presented(self._engine.stream(given) if isinstance(given, RangeReader) else given) as stream,
            aclosing(passing(stream)) as stored,
        ):
            if source.spec.compression is None:
                yield stored
                return
            expanding = expand(stored, source.spec.compression, run=self._engine.run, limit=self._limit)
            async with aclosing(expanding) as expanded:
                yield expanded

    # --------------------------------------------------------------------------------------------------- afterwards

    async def _read_back(self, target: NewDisk, vdi: str, sent: ContentSum | None, progress: Progress) -> None:
        """`IntegrityError` unless the disk holds what was sent, where that is to be known."""
        if sent is None:
            return
        progress.phase("verify", None)
        found = ContentSum()
        reading, joiner = VhdReading(), CellJoiner(found)

        def read(piece: memoryview) -> None:
            for event in reading.feed(piece):
                match event:
                    case Present(offset, data):
                        joiner.add(offset, data)

        async with exported_vhd(target.streams, vdi, engine=self._engine, host=target.host) as export:
            async for piece in export.stream:
                await self._engine.run(read, piece)
                progress.advance(len(piece))
        await self._engine.run(joiner.end)
        if found.value != sent.value:
            raise IntegrityError(
                f"the host says that all of {vdi} is written, and gives back other content: its storage, or the way to it,"
                " loses writes; look at the host's SMlog, and try on another SR",
                vdi=vdi,
            )

    def _bounded(self, size: int) -> int:
        if size > self._limit:
            raise TooLarge(
                f"the disk has {size} bytes, and at most {self._limit} are taken", limit=self._limit, seen=size
            )
        return size


# ------------------------------------------------------------------------------------------------------------- frames


def _sums(target: NewDisk) -> ContentSum | None:
    """For what is sent, where that will be asked for."""
    return ContentSum() if target.verified else None


def _sending(target: NewDisk, vdi: str) -> AbstractAsyncContextManager[Exchange]:
    return target.streams.sending(vdi, image_format="raw", chunked=True, host=target.host)


async def _put(exchange: Exchange, frames: Iterable[bytes | memoryview]) -> None:
    """`frames` are made and sent in one thread."""

    def put() -> None:
        for part in frames:
            exchange.put(part)

    await exchange.run(put)


def _other_size(ref: str, size: int, seen: str) -> IntegrityError:
    return IntegrityError(f"{ref} was said to hold {size} bytes, and {seen} came", needed=size)


class _VhdFrames:
    """A VHD in, frames out. Blocking."""

    def __init__(self, sums: ContentSum | None) -> None:
        self.disk: Disk | None = None
        self._reading = VhdReading()
        self._encoder = ChunkEncoder(skip_zeroes=True, sums=sums)

    def feed(self, piece: memoryview) -> Iterator[bytes | memoryview]:
        """Each is valid until the next is asked for."""
        for event in self._reading.feed(piece):
            yield from self._of(event)

    def finish(self) -> Iterator[bytes | memoryview]:
        """`ImageRefused` unless the VHD was whole."""
        self._reading.finish()
        return self._encoder.finish()

    def _of(self, event: Event) -> Iterator[bytes | memoryview]:
        match event:
            case Disk(parent_id=parent_id):
                if parent_id is not None:
                    raise refuse("vhd-parent", "the VHD is a differencing disk: send it merged with its parents")
                self.disk = event
            case Present(offset, data):
                yield from self._encoder.add(offset, data)
