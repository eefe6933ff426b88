"""Block devices of this host, and what stands in for them: files that have their size already. For threads only."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stores.os_errors import translated

_WRITER = 101
_WITHOUT_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS})
_FLOCK = struct.Struct("hhqqi4x")  # fcntl(2): type, whence, start, length, pid; as 64-bit Linux has it


def held_for_writing(path: Path) -> bool:
    """Whether a qemu process has the image open for writing. Where there are no locks, qemu makes none, and nobody can tell.

    qemu marks what it does with an image by locks on single bytes of its file or device: byte 100 plus the permission's number
    while it has the permission (block/file-posix.c: RAW_LOCK_PERM_BASE; include/block/block-common.h: BLK_PERM_WRITE is bit 1).
    Its tools respect that only where formats have metadata: a raw image that a guest writes they read without a word.
    """
    with _opened(path, os.O_RDONLY) as descriptor:
        wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _WRITER, 1, 0)
        try:
            kind: int = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, wanted))[0]
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
            return False
    return kind != fcntl.F_UNLCK


def size_of(path: Path) -> int:
    """Bytes."""
    with _opened(path, os.O_RDONLY) as descriptor:
        return os.lseek(descriptor, 0, os.SEEK_END)


def flush(path: Path) -> None:
    """What was written is durable."""
    with _opened(path, os.O_WRONLY) as descriptor:
        os.fsync(descriptor)


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    with translated(path.name, ref=path.name):
        descriptor = os.open(path, flags | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
