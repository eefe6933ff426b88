"""What stores whose objects are files in folders have in common: listing them in order, and being written as a stream."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import ClassVar, TypeAlias

from stores.contract import Kind, ObjectInfo, RangeReader
from stores.errors import NotFound
from stores.paths import in_listing
from stores.transfer.buffers import PIECE
from stores.transfer.outgoing import Share

Infos: TypeAlias = list[ObjectInfo]
"""By a name of its own, since `list` is a method in a store."""


def in_order(infos: Iterable[ObjectInfo]) -> Infos:
    """What is in one folder, in the order of the refs of all objects in and below it."""
    # Everything below a directory begins with its name and a slash: so does its place in the order.
    return sorted(infos, key=lambda info: info.ref + "/" if info.is_dir else info.ref)


async def walk(
    prefix: str,
    entries: Callable[[str], Awaitable[Infos]],
    stat: Callable[[str], Awaitable[ObjectInfo]],
) -> AsyncIterator[ObjectInfo]:
    """A listing of a checked `prefix`. `entries`: what is in a folder (empty for the topmost), as `in_order` has it."""
    found = await entries(prefix)
    if prefix and not found:
        try:
            yield await stat(prefix)
        except NotFound:
            return
    waiting = found[::-1]
    while waiting:
        info = waiting.pop()
        if not in_listing(info.ref, prefix):
            continue
        if info.is_dir:
            waiting.extend(reversed(await entries(info.ref)))
        else:
            yield info


class DraftStream:
    """A `PendingStream` into a file, from memory that all streams share."""

    kind: ClassVar[Kind] = Kind.BYTE_STREAM

    def __init__(
        self,
        write: Callable[[memoryview], Awaitable[None]],
        publish: Callable[[], Awaitable[ObjectInfo]],
        memory: Share,
    ) -> None:
        """`write` has taken what it was given when it returns; `publish` makes all of it the object."""
        self._write = write
        self._publish = publish
        self._memory = memory
        self._rooms: deque[memoryview] = deque()  # whole buffers, of which rooms may be the beginning

    def rereads(self, source: RangeReader) -> None:
        """Keeps everything itself."""

    async def write(self, data: memoryview) -> None:
        await self._write(data)

    async def room(self, most: int) -> memoryview:
        self._rooms.append(await self._memory.take(PIECE))
        return self._rooms[-1][:most]

    async def filled(self, room: memoryview) -> None:
        await self._write(room)
        self._memory.give(self._rooms.popleft())

    async def commit(self) -> ObjectInfo:
        return await self._publish()


class DraftCopy:
    """A `PendingCopy` in a file."""

    def __init__(self, publish: Callable[[], Awaitable[ObjectInfo]]) -> None:
        self._publish = publish

    async def commit(self) -> ObjectInfo:
        return await self._publish()
