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
from stores.uninterrupted import uninterrupted


class FileReader(RangeReader):
    """Nobody else may write to the file meanwhile."""

    def __init__(self, path: Path, engine: TransferEngine) -> None:
        self._path = path
        self._engine = engine
        self._descriptor = -1

    def open(self) -> None:
        """Blocking. Into this object, so that the descriptor is not lost when whoever waits for it is cancelled."""
        try:
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            self.info = ObjectInfo(self._path.name, os.fstat(self._descriptor).st_size)
        except OSError as error:
            raise translate(error, self._path.name) from error

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

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
    """The file, until the context ends. `NotFound`, `DeviceFault`."""
    reader = FileReader(path, engine)
    try:
        await engine.run(reader.open)
        yield reader
    finally:
        await uninterrupted(engine.run(reader.close))
