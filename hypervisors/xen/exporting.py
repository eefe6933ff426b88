"""A disk of the pool as a VHD, in the bytes that the host sends, each checked before it is passed on."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from hypervisors.contract import ImageRefused, OperationUnsupported
from hypervisors.images.vhd_reading import Disk, Event, Present, VhdReading
from hypervisors.xen.hosts import Host
from hypervisors.xen.streams import DiskStreams, Incoming
from stores.contract import ByteStream, ObjectInfo
from stores.errors import IntegrityError
from stores.streams import presented
from stores.transfer.engine import TransferEngine
from stores.transfer.readahead import filled_ahead


@dataclass(frozen=True, slots=True)
class Summary:
    """What an export turned out to be, in bytes.

    `size` of the VHD, `virtual_size` of the disk, `present`: of the disk in blocks that the VHD has, `marked`: in sectors that
    are marked as there.
    """

    size: int
    virtual_size: int
    present: int
    marked: int

    @property
    def whole(self) -> bool:
        """Whether all sectors of the blocks are there, so that bitmaps need not be read (`hypervisors.images.vhd_map`)."""
        return self.marked == self.present


class VhdExport:
    """For `exported_vhd`."""

    def __init__(self, stream: ByteStream, checked: _Checked) -> None:
        self.stream = stream
        """Its size is not known before its end."""
        self._checked = checked

    @property
    def summary(self) -> Summary:
        """Once all of the stream has been read, and no earlier."""
        return self._checked.summary


class _Checked(ByteStream):
    def __init__(self, vdi: str, base: str | None, content: Incoming, engine: TransferEngine) -> None:
        self.info = ObjectInfo(vdi, None, ranges=False)
        self._vdi = vdi
        self._base = base
        self._content = content
        self._engine = engine
        self._reading = VhdReading()
        self._size = self._virtual_size = self._marked = 0
        self._ended = False

    @property
    def summary(self) -> Summary:
        if not self._ended:
            raise RuntimeError(f"the export of {self._vdi} has not been read to its end")
        return Summary(self._size, self._virtual_size, self._reading.present, self._marked)

    async def __aiter__(self) -> AsyncGenerator[memoryview, None]:
        async with aclosing(filled_ahead(self._engine.buffers, self._fill)) as pieces:
            async for piece in pieces:
                yield piece
        await self._engine.run(self._finish)
        self._ended = True

    async def _fill(self, buffer: memoryview) -> int:
        return await self._content.fill(buffer, self._take)

    def _take(self, piece: memoryview) -> None:
        try:
            for event in self._reading.feed(piece):
                self._count(event)
        except ImageRefused as error:
            raise self._broken(error) from error
        self._size += len(piece)

    def _finish(self) -> None:
        try:
            self._reading.finish()
        except ImageRefused as error:
            raise self._broken(error) from error

    def _count(self, event: Event) -> None:
        match event:
            case Disk(virtual_size=size, parent_id=parent):
                self._virtual_size = size
                self._check_kind(differencing=parent is not None)
            case Present(data=data):
                self._marked += len(data)

    def _check_kind(self, *, differencing: bool) -> None:
        if self._base is not None and not differencing:
            raise OperationUnsupported(
                f"the host sends all of {self._vdi} where what changed since {self._base} was asked for: it does not keep the"
                " disk as VHD; make a full backup",
                vdi=self._vdi,
                base=self._base,
            )
        if self._base is None and differencing:
            raise IntegrityError(f"the host sends changes of {self._vdi} where all of it was asked for", vdi=self._vdi)

    def _broken(self, error: ImageRefused) -> IntegrityError:
        return IntegrityError(
            f"what the host sent of {self._vdi} is no whole VHD, whatever its task says: {error.message}",
            vdi=self._vdi,
            rule=error.details.get("rule"),
        )


@asynccontextmanager
async def exported_vhd(
    streams: DiskStreams, vdi: str, *, base: str | None = None, engine: TransferEngine, host: Host | None = None
) -> AsyncIterator[VhdExport]:
    """`vdi` as a dynamic VHD; with `base`, an earlier snapshot of the same disk, as a differencing VHD of what changed since.

    The stream ends properly only when the VHD was whole, its last footer included, and the host's task has succeeded;
    otherwise its reader gets `IntegrityError`, `OperationUnsupported` for a whole disk instead of changes, or whatever
    `DiskStreams.receiving` raises. Leaving the context before the end gives the export up.
    """
    async with streams.receiving(vdi, image_format="vhd", base=base, host=host) as content:
        checked = _Checked(vdi, base, content, engine)
        async with presented(checked) as stream:
            yield VhdExport(stream, checked)
