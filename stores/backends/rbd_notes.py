"""Small objects beside the images of an RBD pool: keys and values (omap) of RADOS objects, each written in one step.

One RADOS object holds all notes of one kind about one image, `storage-agent.<kind>/<image>`, so that they are listed without a
look at the rest of the pool.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import ClassVar

from stores.backends.rbd_cluster import Cluster
from stores.contract import Kind, MiB, ObjectInfo, RangeReader
from stores.errors import AlreadyExists, IntegrityError, NotFound, TooLarge
from stores.paths import RECORDS
from stores.uninterrupted import uninterrupted

HIDDEN = f"{RECORDS}/"
IMAGES = f"{HIDDEN}frozen/"
"""Below this, nothing is a note."""

_LIMIT = 1 * MiB
_ONLY = "content"
_OF_AN_IMAGE = ("children", "snapshots", "sent")
"""Kinds of which an image has any number: `.storage-agent/<kind>/<image>/<name>`."""


def is_note(ref: str) -> bool:
    return ref.startswith(HIDDEN) and not ref.startswith(IMAGES)


def where(ref: str) -> tuple[str, str]:
    """The RADOS object of a note or a folder of them, and the key: of a folder that of its notes begins with it."""
    kind, *rest = ref.removeprefix(HIDDEN).split("/")
    if kind in _OF_AN_IMAGE and rest:
        return f"storage-agent.{kind}/{rest[0]}", "/".join(rest[1:])
    return f"storage-agent.{kind}/{'/'.join(rest)}", _ONLY


class Notes:
    """Whoever writes about an image has its lock."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def read(self, ref: str) -> bytes:
        """`NotFound`."""
        name, key = where(ref)
        found = await self._cluster.call("read", note=name, key=key, ref=ref)
        if found is None:
            raise NotFound(f"there is no {ref} in pool {self._cluster.pool} of Ceph", ref=ref)
        return b64decode(found)

    async def put(self, ref: str, content: bytes, *, replace: bool) -> None:
        """Durable when it returns. `AlreadyExists`, unless `replace`."""
        name, key = where(ref)
        if not replace and key in await self._keys(name, ref):
            raise AlreadyExists(f"{ref} exists already", ref=ref)
        value = b64encode(content).decode()
        await uninterrupted(self._cluster.call("put", note=name, key=key, value=value, ref=ref))

    async def remove(self, ref: str) -> None:
        """Idempotent."""
        name, key = where(ref)
        await self._cluster.call("erase", note=name, key=key, ref=ref)

    async def below(self, folder: str) -> Sequence[str]:
        """The refs of all notes in a folder about one image, in order."""
        name, prefix = where(folder)
        prefix = f"{prefix}/" if prefix else ""
        base = HIDDEN + name.removeprefix("storage-agent.")
        return [f"{base}/{key}" for key in sorted(await self._keys(name, folder)) if key.startswith(prefix)]

    async def _keys(self, name: str, ref: str) -> list[str]:
        keys: list[str] = await self._cluster.call("keys", note=name, ref=ref)
        return keys


class NoteReader(RangeReader):
    def __init__(self, info: ObjectInfo, content: bytes) -> None:
        self.info = info
        self._content = content

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        piece = self._content[offset : offset + len(buffer)]
        if offset < 0 or len(piece) != len(buffer):
            raise IntegrityError(f"{self.info.ref} ends at byte {len(self._content)}", ref=self.info.ref)
        buffer[:] = piece


class PendingNote:
    """Kept in memory until it is committed."""

    kind: ClassVar[Kind] = Kind.BYTE_STREAM

    def __init__(self, notes: Notes, ref: str, *, replace: bool) -> None:
        self._notes = notes
        self._ref = ref
        self._replace = replace
        self._content = bytearray()

    def rereads(self, source: RangeReader) -> None:
        """Keeps everything itself."""

    async def write(self, data: memoryview) -> None:
        if len(self._content) + len(data) > _LIMIT:
            raise TooLarge(f"{self._ref} is larger than the {_LIMIT} bytes that a note may have", ref=self._ref)
        self._content += data

    async def room(self, most: int) -> memoryview:
        return memoryview(bytearray(min(most, _LIMIT)))

    async def filled(self, room: memoryview) -> None:
        await self.write(room)

    async def commit(self) -> ObjectInfo:
        content = bytes(self._content)
        await self._notes.put(self._ref, content, replace=self._replace)
        return ObjectInfo(self._ref, len(content))
