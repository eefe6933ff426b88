"""A file of our own under its temporary name, read at random: what has landed, before it is published."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from stores.contract import Extent, ObjectInfo, RangeReader
from stores.errors import IntegrityError
from stores.os_errors import translate
from stores.transfer.engine import TransferEngine


class FileReader(RangeReader):
    """Ranges of an open descriptor. Whoever opened it closes it."""

    def __init__(self, descriptor: int, info: ObjectInfo, engine: TransferEngine) -> None:
        self.info = info
        self._descriptor = descriptor
        self._engine = engine

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        await self._engine.run(self._read, offset, buffer)

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        return await self._engine.run(self._extents, offset, length)

    def _read(self, offset: int, buffer: memoryview) -> None:
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._descriptor, [buffer[done:]], offset + done)
            except OSError as error:
                raise translate(error, self.info.ref) from error
            if count == 0:
                raise IntegrityError(
                    f"{self.info.ref} ended at {offset + done} bytes while it was read", ref=self.info.ref
                )
            done += count

    def _extents(self, offset: int, length: int) -> list[Extent]:
        found: list[Extent] = []
        at, end = offset, offset + length
        while at < end:
            data = self._seek(at, os.SEEK_DATA, end)
            if data > at:
                found.append(Extent(at, data - at, zero=True))
            hole = self._seek(data, os.SEEK_HOLE, end) if data < end else end
            if hole > data:
                found.append(Extent(data, hole - data, zero=False))
            at = hole
        return found

    def _seek(self, offset: int, whence: int, end: int) -> int:
        try:
            return min(os.lseek(self._descriptor, offset, whence), end)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data after the offset
                return end
            raise translate(error, self.info.ref) from error


@asynccontextmanager
async def open_file(path: Path, engine: TransferEngine) -> AsyncIterator[FileReader]:
    """Nobody else may write to the file meanwhile."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise translate(error, path.name) from error
    try:
        yield FileReader(descriptor, ObjectInfo(path.name, os.fstat(descriptor).st_size), engine)
    finally:
        os.close(descriptor)
