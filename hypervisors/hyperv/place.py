r"""Where the images of a pool are: a folder of a share, whose files the host knows by paths of its own.

| the image | its file |
| --- | --- |
| a disk `v` | `v.vhdx` |
| an ISO `i` | `i.iso` |
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import cast

from hypervisors.hyperv.powershell import PowerShellPort
from hypervisors.hyperv.settings import HostFolder
from hypervisors.narrowing import as_managed, as_reader
from stores.contract import DataStore, Kind, ManagedDisk, ObjectInfo, Presentation, RangeReader
from stores.errors import InvalidReference, NotFound
from stores.transfer.engine import TransferEngine

DISK, ISO = ".vhdx", ".iso"
_ENDINGS = (DISK, ISO, ".avhdx")


@dataclass(frozen=True, slots=True)
class Place:
    """`share`: the folder, by SMB. `port`: to its host."""

    share: DataStore
    folder: HostFolder
    port: PowerShellPort
    engine: TransferEngine

    async def file(self, ref: str) -> ObjectInfo:
        """The file of that image, under its own name. `NotFound`."""
        for name in names(ref):
            try:
                return await self.share.stat(name)
            except NotFound:
                continue
        raise NotFound(f"there is no {ref} in the pool", ref=ref, store=self.share.id)

    @asynccontextmanager
    async def read(self, file: ObjectInfo) -> AsyncIterator[RangeReader]:
        """The bytes of a file, as long as it has that version."""
        async with self.share.present(file, Kind.RANGE_READER) as presentation:
            yield as_reader(presentation)


@dataclass(frozen=True, slots=True)
class HostFile(ManagedDisk):
    """`id` is the file's path on the host."""

    place: Place = field(compare=False, repr=False)

    def as_of(self, info: ObjectInfo) -> HostFile:
        """The same with what is known of it now."""
        return replace(self, info=info)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[RangeReader]:
        """Its bytes, as long as it has the version of `info`."""
        file = await self.place.file(self.info.ref)
        async with self.place.read(replace(self.info, ref=file.ref)) as reader:
            yield reader


def as_host_file(presentation: Presentation) -> HostFile:
    return cast(HostFile, as_managed(presentation))


def is_image(name: str) -> bool:
    """Whether a file is one."""
    return name.lower().endswith((DISK, ISO))


def ref_of(name: str) -> str:
    """The image of a file."""
    return name.rpartition(".")[0]


def names(ref: str) -> tuple[str, ...]:
    """The files that it may be. `InvalidReference` for a file's own name: an image has one name only."""
    if ref.lower().endswith(_ENDINGS):
        raise InvalidReference(
            f"an image of a Hyper-V pool is named without the ending of its file: {ref_of(ref)}", ref=ref[:200]
        )
    return (f"{ref}{DISK}", f"{ref}{ISO}")
