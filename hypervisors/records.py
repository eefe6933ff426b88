"""What we know of the images in a pool: one small document about each, written before the image is published.

A record is the only source of an image's format and of its parents: a guest can write into an image, not into its record.
The documents (`hypervisors.documents`) of an image:

    record                    the record
    children/<child>          an empty marker for each linked clone
    snapshots/, sent/         see `snapshot_records`

And in the pool itself, all below `.storage-agent/`:

    frozen/                   see `snapshot_records`
    scratch/<token>           temporary files of a running command

Records are durable when `save` returns. Whoever saves or removes one holds the locks of the image and of its parent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict

from hypervisors.documents import HIDDEN, About, Documents
from stores.contract import ObjectInfo
from stores.errors import AlreadyExists, IntegrityError
from stores.to import ImageFormat
from stores.transfer.digests import Checksum


class Origin(BaseModel):
    """Which object of which store an image was made from, and what its bytes were."""

    model_config = ConfigDict(frozen=True)

    store: str
    ref: str
    version: str | None = None
    digests: dict[str, str] = {}  # algorithm -> hex


class Parent(BaseModel):
    """The image of the same pool that a linked clone is built on."""

    model_config = ConfigDict(frozen=True)

    ref: str
    format: ImageFormat


class Reverted(BaseModel):
    """The last command that gave the volume the content of a snapshot. `before`: the version that the volume's file had; the
    revert is `done`, or was interrupted."""

    model_config = ConfigDict(frozen=True)

    snapshot: str
    token: str
    before: str | None
    done: bool


class Record(BaseModel):
    """One image. Sizes are bytes; `created` is seconds since the epoch; `token` is the command that made it."""

    model_config = ConfigDict(frozen=True)

    layout: Literal[1] = 1
    format: ImageFormat
    virtual_size: int
    token: str
    created: float
    origin: Origin | None = None
    backing: Parent | None = None
    points: tuple[str, ...] = ()
    """Moments since which the image itself keeps track of what is written into it, oldest first: see `snapshot_records`."""
    reverted: Reverted | None = None
    encryption: Literal["luks"] | None = None

    @property
    def parent(self) -> str | None:
        """The ref of the image that this one is built on."""
        return self.backing.ref if self.backing is not None else None


def about_record(ref: str) -> About:
    return About(ref, ("record",))


def scratch_ref(token: str) -> str:
    return f"{HIDDEN}/scratch/{token}"


def same_origin(record: Record, store: str, info: ObjectInfo, checksum: Checksum | None) -> bool:
    """Whether the image was made from just these bytes: same checksum, or same version of the same object."""
    origin = record.origin
    if origin is None:
        return False
    if checksum is not None and checksum.algorithm in origin.digests:
        return origin.digests[checksum.algorithm] == checksum.hex
    return info.version is not None and (origin.store, origin.ref, origin.version) == (store, info.ref, info.version)


class Records:
    """The records of one pool."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents

    async def load(self, ref: str) -> Record | None:
        """None if we never recorded that image. `IntegrityError` if the record is damaged: its image is then not touched,
        since nothing else tells its format."""
        otherwise = f"restore or remove it, and {ref} counts as an image without a record"
        return await self._documents.load(about_record(ref), Record, otherwise=otherwise)

    async def save(self, ref: str, record: Record, *, token: str, replace: bool = False) -> None:
        """Marker first, then the record: a child that is recorded is always seen from its parent. `token` is the writing
        command's. `AlreadyExists` if there is a record already, unless `replace`."""
        if record.backing is not None and await self._documents.read(_marker(record.backing.ref, ref)) is None:
            await self._documents.put(_marker(record.backing.ref, ref), b"", token=token, replace=True)
        try:
            await self._documents.save(about_record(ref), record, token=token, replace=replace)
        except AlreadyExists:
            raise  # the marker may belong to the record that is there
        except BaseException:
            if record.backing is not None and not replace:
                await self._documents.remove(_marker(record.backing.ref, ref))
            raise

    async def remove(self, ref: str, parent: str | None) -> None:
        """The marker at the parent, then the record, which says where the marker is. Idempotent. The image is gone before."""
        if parent is not None:
            await self._documents.remove(_marker(parent, ref))
        await self._documents.remove(about_record(ref))

    async def discard(self, ref: str, parent: str | None, *, token: str) -> None:
        """Remove what a dead command left half written: record and marker. Idempotent."""
        if parent is not None:
            await self._documents.discard(_marker(parent, ref), token=token)
        await self._documents.discard(about_record(ref), token=token)

    async def children(self, ref: str) -> Sequence[str]:
        """Refs of the images that are built on this one, in order."""
        return [child for child in await self._documents.names(_markers(ref)) if await self._is_child(child, ref)]

    async def chain(self, record: Record) -> Sequence[tuple[Parent, Record | None]]:
        """The parents, nearest first. `IntegrityError` if they run in a circle."""
        seen: list[tuple[Parent, Record | None]] = []
        parent = record.backing
        while parent is not None:
            if any(parent.ref == earlier.ref for earlier, _ in seen):
                raise IntegrityError(f"the recorded parents of {parent.ref} run in a circle", ref=parent.ref)
            above = await self.load(parent.ref)
            seen.append((parent, above))
            parent = above.backing if above is not None else None
        return seen

    async def _is_child(self, child: str, parent: str) -> bool:
        record = await self.load(child)
        return record is not None and record.parent == parent


def _markers(parent: str) -> About:
    return About(parent, ("children",))


def _marker(parent: str, child: str) -> About:
    return About(parent, ("children", child))
