"""VHDX files in a directory: what the cmdlets for virtual disks do, with our own writer, qemu-img and our own reader.

Contents are held in memory while they are worked on: disks of tests are small.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path

from hypervisors.contract import ImageRefused
from hypervisors.images import vhdx
from hypervisors.images.vhdx_parent import Parent
from hypervisors.images.vhdx_reading import VhdxImage, disk_of, open_image
from hypervisors.images.vhdx_stream import Identity, layout
from stores.contract import Extent, MiB, ObjectInfo, RangeReader
from stores.transfer.engine import TransferEngine
from tests.disk_histories import finished
from tests.doubles.hyperv.paths import Volumes

E_MISMATCH = 0xC03A000E  # ERROR_VHD_CHILD_PARENT_ID_MISMATCH
E_CORRUPT = 0xC03A0001
E_NOT_FOUND = 0x80070002
E_LIMITATION = 0xC03A001A

_FILE_ATTRIBUTE_SPARSE_FILE = 0x200


class VhdError(Exception):
    """A cmdlet refuses."""

    def __init__(self, identifier: str, hresult: int, text: str) -> None:
        super().__init__(text)
        self.id = identifier
        self.hresult = hresult


@dataclass(frozen=True)
class Vhd:
    path: str
    kind: str
    image: VhdxImage
    block: int
    file_size: int

    @property
    def parent(self) -> str | None:
        if self.image.parent is None or self.image.parent.absolute_path is None:
            return None
        return self.image.parent.absolute_path.removeprefix("\\\\?\\")


class Vhds:
    """Paths are Windows'. Methods raise `VhdError`."""

    def __init__(self, volumes: Volumes) -> None:
        self._volumes = volumes
        self._engine = TransferEngine()

    async def close(self) -> None:
        await self._engine.aclose()

    async def get(self, path: str) -> Vhd:
        file = self._volumes.local(path)
        if not file.is_file():
            raise VhdError("ObjectNotFound,Microsoft.Vhd.PowerShell.Cmdlets.GetVhd", E_NOT_FOUND, f"no file {path}")
        if is_sparse(file):
            raise VhdError(
                "OperationFailed,Microsoft.Vhd.PowerShell.Cmdlets.GetVhd", E_LIMITATION, "the file is sparse"
            )
        reader = _File(file)
        try:
            image = await open_image(reader, self._engine)
            regions = vhdx.read_regions(reader.part(0, vhdx.HEADERS), reader.size)
            parameters = vhdx.read_parameters(reader.part(regions.metadata.offset, regions.metadata.length), regions)
        except ImageRefused as error:
            raise VhdError(
                "OperationFailed,Microsoft.Vhd.PowerShell.Cmdlets.GetVhd", E_CORRUPT, error.message
            ) from error
        kind = "Fixed" if parameters.leaves_blocks_allocated else "Dynamic"
        return Vhd(path, "Differencing" if image.parent else kind, image, parameters.block, reader.size)

    async def chain(self, path: str) -> list[Vhd]:
        """The lowest first. A parent that is missing or was written to since is refused."""
        found = [await self.get(path)]
        while (parent := found[0].parent) is not None:
            found.insert(0, await self.get(parent))
        try:
            disk_of([one.image for one in found])
        except ImageRefused as error:
            raise VhdError(
                "OperationFailed,Microsoft.Vhd.PowerShell.Cmdlets.TestVhd", E_MISMATCH, error.message
            ) from error
        return found

    async def content(self, path: str) -> bytes:
        """What a guest would see."""
        disk = disk_of([one.image for one in await self.chain(path)])
        return await disk.read(0, disk.virtual_size)

    def create(self, path: str, size: int, *, kind: str, block: int | None, sector: int) -> None:
        if kind == "Fixed":
            self._fixed(path, bytes(size))
        else:
            self._write(path, bytes(size), [], _identity(), block=block, sector=sector)

    async def create_child(self, path: str, parent: str) -> None:
        below = await self.get(parent)
        await self.chain(parent)
        self._write(path, bytes(below.image.virtual_size), [], _identity(below.image.disk_id), below=below)

    async def resize(self, path: str, size: int) -> None:
        old = await self.get(path)
        if size < old.image.virtual_size:
            raise VhdError(
                "InvalidParameter,Microsoft.Vhd.PowerShell.Cmdlets.ResizeVhd", 0x80070057, "smaller than the minimum"
            )
        if old.kind == "Differencing":
            raise VhdError(
                "OperationFailed,Microsoft.Vhd.PowerShell.Cmdlets.ResizeVhd",
                0xC03A001B,
                "has a parent: the double cannot",
            )
        content = (await self.content(path)).ljust(size, b"\0")
        if old.kind == "Fixed":
            self._fixed(path, content)
        else:
            identity = Identity(old.image.disk_id or uuid.uuid4(), uuid.uuid4(), uuid.uuid4())
            self._write(path, content, data_of(content), identity, block=old.block, sector=old.image.sector)

    async def convert(self, source: str, destination: str, kind: str, block: int | None) -> None:
        content = await self.content(source)
        sector = (await self.get(source)).image.sector
        if kind == "Fixed":
            self._fixed(destination, content)
        else:
            self._write(destination, content, data_of(content), _identity(), block=block, sector=sector)

    async def merge(self, path: str, destination: str) -> None:
        """`destination` is somewhere below `path`. All data are written again, under a new content id."""
        content = await self.content(path)
        into = await self.get(destination)
        parent = await self.get(into.parent) if into.parent is not None else None
        identity = Identity(into.image.disk_id or uuid.uuid4(), uuid.uuid4(), uuid.uuid4())
        extents = [Extent(0, len(content), zero=False)] if parent is not None else data_of(content)
        self._write(destination, content, extents, identity, block=into.block, sector=into.image.sector, below=parent)

    async def set_parent(self, path: str, parent: str, *, ignore_mismatch: bool) -> None:
        child, below = await self.get(path), await self.get(parent)
        assert child.image.parent is not None
        if not ignore_mismatch and below.image.content_id not in child.image.parent.ids:
            raise VhdError(
                "OperationFailed,Microsoft.Vhd.PowerShell.Cmdlets.SetVhd",
                E_MISMATCH,
                "another parent than it was made for",
            )
        content = bytearray(child.image.virtual_size)
        extents = []
        async for run in child.image.runs(0, len(content)):
            if run.below:
                continue
            extents.append(Extent(run.offset, run.length, zero=run.place is None))
            if run.place is not None:
                content[run.offset : run.offset + run.length] = await child.image.file.read(run.place, run.length)
        identity = Identity(child.image.disk_id or uuid.uuid4(), child.image.content_id, uuid.uuid4())
        self._write(path, bytes(content), extents, identity, block=child.block, sector=child.image.sector, below=below)

    async def write(self, path: str, offset: int, data: bytes) -> None:
        """What a guest writes into a disk."""
        into = await self.get(path)
        content = bytearray(await self.content(path))
        content[offset : offset + len(data)] = data
        parent = await self.get(into.parent) if into.parent is not None else None
        identity = Identity(into.image.disk_id or uuid.uuid4(), uuid.uuid4(), uuid.uuid4())
        extents = data_of(bytes(content)) if parent is None else [Extent(0, len(content), zero=False)]
        self._write(path, bytes(content), extents, identity, block=into.block, sector=into.image.sector, below=parent)

    # ------------------------------------------------------------------------------------------------------ inside

    def _write(
        self,
        path: str,
        content: bytes,
        extents: list[Extent],
        identity: Identity,
        *,
        block: int | None = None,
        sector: int = 512,
        below: Vhd | None = None,
    ) -> None:
        """Replaces the file, so that whoever has it open goes on reading the old one."""
        parent = None
        if below is not None:
            block, sector = block or below.block, below.image.sector
            name = below.path.rpartition("\\")[2]
            parent = Parent(below.image.content_id, f".\\{name}", f"\\\\?\\{below.path}")
        made = layout(len(content), extents, identity=identity, block=block, sector=sector, parent=parent)
        _replace(self._volumes.local(path), finished(made, content))

    def _fixed(self, path: str, content: bytes) -> None:
        """By our own writer, all blocks there, with the flag that says that they stay."""
        made = layout(len(content), [Extent(0, len(content), zero=False)], identity=_identity())
        image = bytearray(finished(made, content))
        regions = vhdx.read_regions(bytes(image[: vhdx.HEADERS]), len(image))
        place = regions.metadata.offset + 64 * 1024 + 4  # the flags of the file parameters, the first item
        image[place] |= 1
        _replace(self._volumes.local(path), bytes(image))


class _File(RangeReader):
    """Opened for each read: files are replaced as a whole, and disks of benchmarks are large."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.size = path.stat().st_size
        self.info = ObjectInfo(path.name, self.size)

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.part(offset, len(buffer))

    def part(self, offset: int, length: int) -> bytes:
        with self._path.open("rb") as file:
            file.seek(offset)
            return file.read(length)


def _replace(file: Path, content: bytes) -> None:
    new = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    new.write_bytes(content)
    os.replace(new, file)


def _identity(disk: uuid.UUID | None = None) -> Identity:
    return Identity(disk or uuid.uuid4(), uuid.uuid4(), uuid.uuid4())


def data_of(content: bytes) -> list[Extent]:
    """Of whole MiB that hold anything."""
    zero = bytes(MiB)
    found = []
    for start in range(0, len(content), MiB):
        part = content[start : start + MiB]
        if part != zero[: len(part)]:
            found.append(Extent(start, len(part), zero=False))
    return found


def is_sparse(file: Path) -> bool:
    """As Samba tells it to Windows: by the file's attribute. Holes of the file system below do not count."""
    try:
        return says_sparse(os.getxattr(file, "user.DOSATTRIB"))
    except OSError:
        return False


def says_sparse(told: bytes) -> bool:
    """Of Samba's `xattr_DOSATTRIB`: attributes as hexadecimal text, or, from version 4 on, no text and a number."""
    text = told.partition(b"\0")[0]
    attributes = int(text, 16) if text else int.from_bytes(told[12:16], "little")
    return bool(attributes & _FILE_ATTRIBUTE_SPARSE_FILE)
