"""Writing pieces of a file in place: direct I/O where it works, zeroes left out."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from stores.contract import KiB
from stores.errors import StoreError
from stores.os_errors import is_no_space, no_space, translate

ALIGNMENT = 4 * KiB
"""Direct I/O wants offset, length and address aligned to the logical block size, which is at most this (open(2), O_DIRECT)."""

BLOCK = 64 * KiB
"""Zeroes are left out in whole blocks of this size: qcow2's default cluster, and large enough to cost next to nothing."""

_ZEROES = bytes(BLOCK)


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


class PlacedFile:
    """A file being filled in any order, by several threads at once, each at its own place. All methods block.

    What is never written reads as zeroes and takes no room. Nothing is fsynced. Errors are typed (`stores.os_errors`).
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._buffered = -1
        self._direct: int | None = None

    def open(self, size: int = 0) -> None:
        """Opens the file, makes it if need be (mode 0600), empties it and gives it `size`. Follows no symbolic link."""
        flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
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
        """Puts `view` at `offset`, leaving out blocks of zeroes: the place must not have been written before."""
        try:
            for start, end in data_runs(view, offset):
                self._place(offset + start, view[start:end])
        except OSError as error:
            raise _disk_error(error, self._path, len(view)) from error

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
