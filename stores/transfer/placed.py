"""Writing pieces of a file in place: direct I/O where it works, zeroes left out."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from stores.contract import KiB
from stores.errors import IntegrityError, StoreError
from stores.os_errors import is_no_space, no_space, translate

ALIGNMENT = 4 * KiB
"""Direct I/O wants offset, length and address aligned to the logical block size, which is at most this (open(2), O_DIRECT)."""

BLOCK = 64 * KiB
"""Zeroes are left out in whole blocks of this size: qcow2's default cluster, and large enough to cost next to nothing."""

_ZEROES = bytes(BLOCK)
_ZERO_VIEW = memoryview(_ZEROES)


def data_runs(view: memoryview, offset: int) -> Iterator[tuple[int, int]]:
    """Start and end, within `view`, of what must be written when it belongs at file offset `offset`: blocks that are not all
    zero, neighbours joined."""
    start: int | None = None
    at = 0
    while at < len(view):
        end = min(len(view), at + BLOCK - (offset + at) % BLOCK)
        # A byte tells most data from zeroes; what passes is copied, since bytes compare ten times as fast as views.
        if view[at] or view[end - 1] or bytes(view[at:end]) != _ZEROES[: end - at]:
            start = at if start is None else start
        elif start is not None:
            yield start, at
            start = None
        at = end
    if start is not None:
        yield start, len(view)


def _disk_error(error: OSError, path: Path, needed: int) -> StoreError:
    """A failed call on the file as one of ours. `needed`: bytes that it was to take."""
    if not is_no_space(error):
        return translate(error, str(path), path=str(path))
    try:
        room = os.statvfs(path.parent)
    except OSError:
        return no_space(str(path), needed=needed, available=0)  # a detail for the operator; the error stands without it
    return no_space(str(path), needed=needed, available=room.f_bavail * room.f_frsize)


class Place(Protocol):
    """What takes pieces of an object in any order, from several threads at once. All methods but `abort` may block."""

    def write(self, offset: int, view: memoryview) -> None:
        """Puts `view`, which is overwritten afterwards, at `offset`."""
        ...

    def zero(self, offset: int, length: int) -> None:
        """A hole of the object."""
        ...

    def abort(self) -> None:
        """Ends whatever a thread waits for in it. Whoever calls this writes no more. From any thread."""
        ...


class PlacedFile:
    """A file being filled in any order, by several threads at once, each at its own place. All methods block.

    What is never written reads as zeroes and takes no room. Nothing is fsynced. Errors are typed (`stores.os_errors`).
    `kept`: go on with a file that holds some of its content already, instead of an empty one.
    """

    def __init__(self, path: Path, *, kept: bool = False) -> None:
        self._path = path
        self._kept = kept
        self._buffered = -1
        self._direct: int | None = None

    def open(self, size: int = 0) -> None:
        """Opens the file and gives it `size`. Follows no symbolic link. Unless it is kept, it is emptied, and made if need be
        (mode 0600); a kept one must be there (`NotFound`) and have that size (`IntegrityError`)."""
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            if self._kept:
                self._buffered = os.open(self._path, flags)
                self._expect(size)
            else:
                self._buffered = os.open(self._path, flags | os.O_CREAT, 0o600)
                os.ftruncate(self._buffered, 0)
            os.ftruncate(self._buffered, size)
            self._direct = os.open(self._path, flags | os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL or self._buffered < 0:  # EINVAL: this file system has no direct I/O
                raise _disk_error(error, self._path, size) from error

    def resize(self, size: int) -> None:
        """Sets the exact length; what is new reads as zeroes."""
        try:
            os.ftruncate(self._buffered, size)
        except OSError as error:
            raise _disk_error(error, self._path, size) from error

    def write(self, offset: int, view: memoryview) -> None:
        """Puts `view` at `offset`, leaving out blocks of zeroes: in a file that was not kept, the place must not have been
        written before."""
        try:
            zero = 0
            for start, end in data_runs(view, offset):
                self._clear(offset + zero, start - zero)
                self._place(offset + start, view[start:end])
                zero = end
            self._clear(offset + zero, len(view) - zero)
        except OSError as error:
            raise _disk_error(error, self._path, len(view)) from error

    def zero(self, offset: int, length: int) -> None:
        """Sees to it that a hole of the source reads as zeroes."""
        try:
            self._clear(offset, length)
        except OSError as error:
            raise _disk_error(error, self._path, length) from error

    def abort(self) -> None:
        """A disk answers by itself."""

    def read(self, offset: int, view: memoryview) -> None:
        """Fills `view` with what a kept file holds at `offset`. `IntegrityError` if it ends before."""
        try:
            while len(view):
                count = os.preadv(self._buffered, [view], offset)
                if not count:
                    raise IntegrityError(f"{self._path} ends at byte {offset}, and should hold more", seen=offset)
                view, offset = view[count:], offset + count
        except OSError as error:
            raise _disk_error(error, self._path, len(view)) from error

    def _expect(self, size: int) -> None:
        found = os.fstat(self._buffered).st_size
        if found != size:
            raise IntegrityError(f"{self._path} has {found} bytes, and {size} were left there", needed=size, seen=found)

    def _clear(self, offset: int, length: int) -> None:
        """What an earlier writer left in a place that is to read as zeroes is written over; a hole stays one."""
        end = offset + length
        while self._kept and offset < end:
            offset = self._data_from(offset)
            view = _ZERO_VIEW[: min(BLOCK, end - offset)] if offset < end else _ZERO_VIEW[:0]
            offset += len(view)
            self._place(offset - len(view), view)

    def _data_from(self, offset: int) -> int:
        """Where the next data begin; far beyond the end where there are none."""
        try:
            return os.lseek(self._buffered, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return sys.maxsize
            raise

    def _place(self, offset: int, view: memoryview) -> None:
        while len(view):
            aligned = len(view) - len(view) % ALIGNMENT if offset % ALIGNMENT == 0 else 0
            direct = self._direct
            try:
                if direct is not None and aligned:
                    done = os.pwrite(direct, view[:aligned], offset)
                else:
                    done = os.pwrite(self._buffered, view, offset)
            except OSError as error:
                if error.errno != errno.EINVAL or direct is None:
                    raise
                # The memory is not aligned or the device has larger blocks: the page cache takes the rest of this call.
                while len(view):
                    done = os.pwrite(self._buffered, view, offset)
                    view, offset = view[done:], offset + done
                return
            view, offset = view[done:], offset + done

    def close(self) -> None:
        """Gives back the descriptors. Idempotent."""
        if self._direct is not None:
            os.close(self._direct)
            self._direct = None
        if self._buffered >= 0:
            os.close(self._buffered)
            self._buffered = -1
