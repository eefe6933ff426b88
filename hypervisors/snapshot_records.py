"""What we know of the snapshots of a pool's volumes. The documents (`hypervisors.documents`) of a volume:

    snapshots/<name>              the record: the snapshot exists from the moment it is written
    sent/<name>/<where>           where it was backed up to, or was about to be

And in the pool itself, below `.storage-agent/`; `<volume>` is the volume's ref, percent-encoded:

    frozen/<volume>/<name>        its content, where it is an image of its own

A snapshot is also a *point*: a moment from which on the volume itself keeps
track of what is written into it, under the snapshot's `tag`. The point outlives the snapshot's content where a backup was
made of it, since the next incremental backup may count from there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from enum import StrEnum
from typing import Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict

from hypervisors.documents import HIDDEN, About, Documents
from stores.to import ImageFormat


class Kept(StrEnum):
    """Where the content of a snapshot is."""

    FILE = "file"  # in an image of its own, which shares blocks with the volume where its storage can
    INSIDE = "inside"  # in the volume's image
    HELD = "held"  # by the machine that has the volume open, as long as that runs and the command that made it
    GONE = "gone"  # nowhere any more: only the point is left, for the next incremental backup


class SnapshotRecord(BaseModel):
    """One snapshot. Sizes are bytes; `created` is seconds since the epoch; `token` is the command that made it."""

    model_config = ConfigDict(frozen=True)

    layout: Literal[1] = 1
    volume: str
    name: str
    tag: str
    """Its name wherever names are few and short, unique in the pool: of the snapshot inside the volume, and of the point."""
    kept: Kept
    format: ImageFormat
    virtual_size: int
    physical_size: int  # what the volume took when the snapshot was made
    token: str
    created: float
    since: tuple[str, ...] = ()
    """Tags of the earlier points, oldest first: what changed from each of them to the next, and from the last one to this
    snapshot, is known to the image that holds the snapshot."""


class Sent(BaseModel):
    """One object that a snapshot was backed up to. `manifest`: the digest of its manifest; None until that is written: the
    object, should it be there, is then what a dead command of ours left."""

    model_config = ConfigDict(frozen=True)

    store: str
    ref: str
    token: str
    manifest: str | None = None
    size: int | None = None  # of the object
    format: ImageFormat = ImageFormat.QCOW2
    parent: str | None = None  # ref


def about_snapshot(volume: str, name: str) -> About:
    return About(volume, ("snapshots", name))


FROZEN = f"{HIDDEN}/frozen"
"""What refs of snapshots that are images of their own begin with."""


def frozen_ref(volume: str, name: str) -> str:
    """Of the content, where it is an image of its own."""
    return f"{FROZEN}/{quote(volume, safe='')}/{quote(name, safe='')}"


TAG = "sa-"
"""What our tags begin with: others may have snapshots and bitmaps of their own in an image."""


def tag_prefix(volume: str, name: str, token: str) -> str:
    """What tags of snapshots of that name begin with that this command makes."""
    told = "\0".join((volume, name, token))
    return f"{TAG}{hashlib.sha256(told.encode()).hexdigest()[:20]}-"


def tag_of(volume: str, name: str, token: str, created: float) -> str:
    """A tag that no other snapshot has, also if names and tokens come again."""
    return f"{tag_prefix(volume, name, token)}{int(created * 1000):x}"


class SnapshotRecords:
    """The records of one pool. Whoever saves or removes one holds the lock of its volume."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents

    async def load(self, volume: str, name: str) -> SnapshotRecord | None:
        otherwise = "restore or remove it, and there is no such snapshot"
        return await self._documents.load(about_snapshot(volume, name), SnapshotRecord, otherwise=otherwise)

    async def save(self, record: SnapshotRecord, *, token: str, replace: bool = False) -> None:
        """Durable when it returns. `AlreadyExists` unless `replace`."""
        about = about_snapshot(record.volume, record.name)
        await self._documents.save(about, record, token=token, replace=replace)

    async def names(self, volume: str) -> Sequence[str]:
        """Of all of the volume's, points included."""
        return await self._documents.names(About(volume, ("snapshots",)))

    async def of(self, volume: str) -> Sequence[SnapshotRecord]:
        """All of the volume's, points included, oldest first."""
        found = [await self.load(volume, name) for name in await self.names(volume)]
        return sorted((record for record in found if record is not None), key=lambda record: record.created)

    async def remove(self, record: SnapshotRecord) -> None:
        """With what is known of its backups. Idempotent."""
        folder = _about_sent(record)
        for name in await self._documents.names(folder):
            await self._documents.remove(About(folder.image, (*folder.parts, name)))
        await self._documents.remove(about_snapshot(record.volume, record.name))

    async def discard(self, volume: str, name: str, *, token: str) -> None:
        """Remove what a dead command left half written. Idempotent."""
        await self._documents.discard(about_snapshot(volume, name), token=token)

    # --------------------------------------------------------------------------------------------------- its backups

    async def sent(self, record: SnapshotRecord, store: str, ref: str) -> Sent | None:
        """What is known of a backup to that object."""
        about = _about_sent(record, _where(store, ref))
        return await self._documents.load(about, Sent, otherwise="remove it, and nothing of ours was sent there")

    async def note(self, record: SnapshotRecord, sent: Sent) -> None:
        """Durable when it returns."""
        about = _about_sent(record, _where(sent.store, sent.ref))
        await self._documents.save(about, sent, token=sent.token, replace=True)

    async def backed_up(self, record: SnapshotRecord) -> bool:
        """Whether there is, or was, a backup that an incremental one could build on."""
        for name in await self._documents.names(_about_sent(record)):
            sent = await self._documents.load(_about_sent(record, name), Sent, otherwise="remove it")
            if sent is not None and sent.manifest is not None:
                return True
        return False

    async def discard_note(self, record: SnapshotRecord, store: str, ref: str, *, token: str) -> None:
        """Remove what a dead command left half written of it. Idempotent."""
        await self._documents.discard(_about_sent(record, _where(store, ref)), token=token)


def _about_sent(record: SnapshotRecord, *where: str) -> About:
    return About(record.volume, ("sent", record.name, *where))


def _where(store: str, ref: str) -> str:
    return hashlib.sha256("\0".join((store, ref)).encode()).hexdigest()[:32]
