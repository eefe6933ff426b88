"""A disk on its way into a pool: a VHDX in one stream, or the share's own copy of one, under a temporary name.

Nothing of it is ever sparse: Hyper-V opens no such file.
"""

from __future__ import annotations

import ntpath
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from types import TracebackType
from typing import ClassVar, cast
from uuid import UUID, uuid4

from hypervisors.hyperv.place import Place
from hypervisors.images.streaming import LayoutReader
from hypervisors.images.vhdx_parent import Parent
from hypervisors.images.vhdx_stream import Identity, VhdxLayout, layout
from hypervisors.narrowing import as_pending_stream
from stores.contract import (
    Extent,
    Kind,
    ManagedDisk,
    ObjectInfo,
    PendingCopy,
    PendingStream,
    PendingWrite,
    Progress,
    RangeReader,
    Silent,
)
from stores.errors import IntegrityError
from stores.transfer.engine import Fetched
from stores.transfer.pieces import known_size
from stores.uninterrupted import uninterrupted

SECTOR = 512


class PendingVhdx:
    """See `stores.contract.PendingDisk`; it is filled once, in one of its ways. A context: leaving it without `commit` removes
    what was written."""

    kind: ClassVar[Kind] = Kind.MANAGED_DISK

    def __init__(self, place: Place, ref: str, name: str, *, token: str, replace: bool, new: bool) -> None:
        """`name`: of its file. `new`: whether there is no disk of that name yet."""
        self.place = place
        self._ref = ref
        self._name = name
        self._token = token
        self._replace = replace
        self._new = new
        self._stack = AsyncExitStack()
        self._written: PendingCopy | None = None
        self._size = 0

    async def __aenter__(self) -> PendingVhdx:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    # ------------------------------------------------------------------------------------------------ ways to fill it

    async def make(self, size: int) -> ManagedDisk:
        return await self._laid_out(_Nothing(self._ref, size), layout(_sectors(size), (), identity=_identity()))

    async def derive(self, disk: ManagedDisk, *, frozen: bool) -> ManagedDisk:
        """All of the disk's file, by the server of the share: nobody may write to it meanwhile. Blocks are shared where its
        file system does that; a linked clone stays one."""
        await self.copy(disk.info)
        return self._disk()

    async def copy(self, source: ObjectInfo) -> None:
        """The same of an image of this store, which has that version."""
        file = replace(source, ref=(await self.place.file(source.ref)).ref)
        made = self.place.share.copy(file, self._name, token=self._token, replace=self._replace)
        self._written, self._size = await self._stack.enter_async_context(made), source.size or 0

    async def fill(
        self, disk: RangeReader, extents: Sequence[Extent], *, sector: int = SECTOR, progress: Progress | None = None
    ) -> ManagedDisk:
        """What `disk` has in `extents`; all else is zero and takes no room."""
        made = await self.place.engine.run(_layout, _sectors(known_size(disk)), extents, sector)
        return await self._laid_out(disk, made, progress)

    async def link(
        self, parent: ManagedDisk, content: UUID, disk: UUID | None, *, size: int, sector: int
    ) -> ManagedDisk:
        """A differencing disk over `parent`, which has that content and disk id, in this pool, and never changes."""
        here = self.place.folder.of(self._name)
        below = Parent(content, _relative(parent.id, here), f"\\\\?\\{parent.id}")
        identity = Identity(disk or uuid4(), uuid4(), uuid4())
        made = layout(_sectors(size), (), identity=identity, sector=sector, parent=below)
        return await self._laid_out(_Nothing(self._ref, size), made)

    async def send(self, image: RangeReader, *, digests: Sequence[str], progress: Progress) -> Fetched:
        """A VHDX as it is."""
        size = known_size(image)
        stream = await self._stream(size)
        return await self.place.engine.send(image, stream, digests=digests, progress=progress)

    # ---------------------------------------------------------------------------------------------------------- its end

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._size

    async def commit(self) -> ObjectInfo:
        """Only of a disk that was filled. A new one has passed Hyper-V's own check when this returns: `IntegrityError` if it
        does not, and then, as when the host cannot be asked, it is gone again. What takes the place of another is a copy
        of what has passed."""
        assert self._written is not None
        info = await self._written.commit()
        if self._new:
            try:
                await self._check()
            except BaseException:
                await uninterrupted(self.place.share.delete(self._name))
                raise
        return replace(info, ref=self._ref)

    async def _check(self) -> None:
        path = self.place.folder.of(self._name)
        tested = await self.place.port.run("test-vhd", {"path": path})
        told = await self.place.port.run("get-file", {"path": path})
        wrong = [name for name in ("sparse", "compressed", "encrypted") if told[name]]
        if wrong:
            raise IntegrityError(
                f"{self._ref}: its file is {' and '.join(wrong)}, and Hyper-V opens no such disk: turn that off for the folder",
                ref=self._ref,
                path=path,
            )
        if not tested["valid"]:
            problem = tested["problem"] or {}
            said = problem.get("message") or "it does not say why"
            raise IntegrityError(
                f"{self._ref}: Hyper-V does not take the disk that was written: {said}",
                ref=self._ref,
                path=path,
                id=problem.get("id"),
            )

    # -------------------------------------------------------------------------------------------------------------- steps

    def _disk(self) -> ManagedDisk:
        path = self.place.folder.of(self._name)
        return ManagedDisk(path, ObjectInfo(self._ref, self._size))

    async def _laid_out(self, disk: RangeReader, made: VhdxLayout, progress: Progress | None = None) -> ManagedDisk:
        engine = self.place.engine
        stream = await self._stream(made.size)
        await engine.send(LayoutReader(made, disk, engine.network.of(disk)), stream, progress=progress or Silent())
        return self._disk()

    async def _stream(self, size: int) -> PendingStream:
        writing = self.place.share.write(
            self._name, Kind.BYTE_STREAM, token=self._token, size=size, replace=self._replace
        )
        stream = as_pending_stream(await self._stack.enter_async_context(writing))
        self._written, self._size = stream, size
        return stream


def as_pending_vhdx(pending: PendingWrite) -> PendingVhdx:
    if pending.kind is Kind.MANAGED_DISK:
        return cast(PendingVhdx, pending)
    raise TypeError(f"asked for a disk to write, got {pending.kind}")


class _Nothing(RangeReader):
    """A disk of which nothing is read."""

    def __init__(self, ref: str, size: int) -> None:
        self.info = ObjectInfo(ref, size)

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        raise IntegrityError(f"{self.info.ref} has no content yet", ref=self.info.ref)


def _layout(size: int, extents: Sequence[Extent], sector: int) -> VhdxLayout:
    return layout(size, extents, identity=_identity(), sector=sector)


def _identity() -> Identity:
    return Identity(uuid4(), uuid4(), uuid4())


def _sectors(size: int) -> int:
    """Whole ones, and at least one."""
    return max(-(-size // SECTOR), 1) * SECTOR


def _relative(path: str, of: str) -> str:
    r"""From the folder of the file `of`, as a VHDX has it: `.\name`, `..\folder\name`."""
    relative = ntpath.relpath(path, ntpath.dirname(of))
    return relative if relative.startswith("..\\") else f".\\{relative}"
