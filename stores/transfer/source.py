"""The local file that an upload sends. All methods block and are for threads; several may read at once."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from stores.errors import IntegrityError, InvalidReference
from stores.os_errors import translated


class SourceFile:
    """A regular file, whose size is that at opening. Errors are typed (`stores.os_errors`)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.descriptor = -1

    def open(self) -> None:
        """Into this object, so that a descriptor cannot get lost on its way to a caller who was cancelled."""
        with translated(str(self.path), path=str(self.path)):
            # O_NONBLOCK: opening a FIFO must not wait for its other end; it is refused right after.
            self.descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            status = os.fstat(self.descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InvalidReference(f"{self.path} is not a regular file and cannot be uploaded", path=str(self.path))
        self.size = status.st_size

    def read(self, offset: int, view: memoryview) -> None:
        """Fills `view`. `IntegrityError` where the file ends before, since somebody cut it meanwhile."""
        with translated(str(self.path), path=str(self.path)):
            while view:
                count = os.preadv(self.descriptor, [view], offset)
                if not count:
                    raise self.cut_short(offset)
                view, offset = view[count:], offset + count

    def data(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Start and end of each run of data in that range, in order; what lies between them are holes."""
        with translated(str(self.path), path=str(self.path)):
            while start < end:
                try:
                    start = os.lseek(self.descriptor, start, os.SEEK_DATA)
                    stop = min(os.lseek(self.descriptor, start, os.SEEK_HOLE), end)
                except OSError as error:
                    if error.errno != errno.ENXIO:  # no data behind `start`
                        raise
                    return
                if start < end:
                    yield start, stop
                start = stop

    def cut_short(self, offset: int) -> IntegrityError:
        """The error for a file that ends at `offset`, before its size."""
        return IntegrityError(
            f"{self.path} ends at byte {offset} and had {self.size} bytes when its upload began: it must not be changed"
            " meanwhile",
            path=str(self.path),
            needed=self.size,
            seen=offset,
        )

    def close(self) -> None:
        """Idempotent."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
