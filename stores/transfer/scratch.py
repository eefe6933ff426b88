"""What comes once and is needed twice, and is more than memory is for: a file without a name."""

from __future__ import annotations

import os
import tempfile
from functools import partial
from pathlib import Path
from typing import IO

from stores.contract import ObjectInfo, RangeReader
from stores.errors import IntegrityError
from stores.os_errors import is_no_space, no_space, translate
from stores.transfer.threads import OwnedThreads


class Scratch(RangeReader):
    """Bytes that were appended, to be read at random. Nothing of it outlives `close`, or the process; nothing is fsynced.

    `DeviceFault`, `AccessDenied` and the like where the directory cannot be used, `NoSpace` where it is full.
    """

    def __init__(self, folder: Path, threads: OwnedThreads) -> None:
        """`threads`: for its calls."""
        self._folder = folder
        self._threads = threads
        self._file: IO[bytes] | None = None
        self.info = ObjectInfo(f"a temporary file in {folder}", 0)

    async def append(self, view: memoryview) -> None:
        """One caller at a time."""
        await self._threads.run(partial(self._append, view))
        self.info = ObjectInfo(self.info.ref, (self.info.size or 0) + len(view))

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        await self._threads.run(partial(self._read, offset, buffer))

    async def close(self) -> None:
        """Idempotent."""
        if self._file is not None:
            await self._threads.run(self._file.close)

    def _append(self, view: memoryview) -> None:
        try:
            if self._file is None:
                # Into this object, so that it cannot get lost on its way to a caller who was cancelled.
                self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 - `close` closes it
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            if is_no_space(error):
                raise self._full(len(view)) from error
            raise translate(error, self.info.ref, path=str(self._folder)) from error

    def _read(self, offset: int, buffer: memoryview) -> None:
        assert self._file is not None
        try:
            while buffer:
                count = os.preadv(self._file.fileno(), [buffer], offset)
                if not count:
                    raise IntegrityError(
                        f"{self.info.ref} ends at byte {offset}: nothing else may write it", seen=offset
                    )
                buffer, offset = buffer[count:], offset + count
        except OSError as error:
            raise translate(error, self.info.ref, path=str(self._folder)) from error

    def _full(self, needed: int) -> Exception:
        status = os.statvfs(self._folder)
        available = status.f_bavail * status.f_frsize
        return no_space(self.info.ref, needed=needed, available=available, path=str(self._folder))
