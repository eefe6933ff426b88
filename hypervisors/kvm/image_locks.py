"""Whether a qemu process has an image open for writing.

qemu marks what it does with an image's file by locks on single bytes of it: byte 100 plus the permission's number while it has
the permission (block/file-posix.c: RAW_LOCK_PERM_BASE; include/block/block-common.h: BLK_PERM_WRITE is bit 1). Its tools
respect that only where formats have metadata: a raw image that a guest writes they read without a word.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path

from hypervisors.contract import ImageLocked
from stores.os_errors import translated

_WRITER = 101
_WITHOUT_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS})
_FLOCK = struct.Struct("hhqqi4x")  # fcntl(2): type, whence, start, length, pid; as 64-bit Linux has it


def require_no_writer(path: Path) -> None:
    """`ImageLocked` while somebody has it open for writing. Blocking. Where the file system knows no locks, qemu makes none,
    and nobody can tell."""
    with translated(path.name, ref=path.name):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            held = _holder(descriptor)
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
            return
        finally:
            os.close(descriptor)
    if held != fcntl.F_UNLCK:
        raise ImageLocked(
            f"another process has {path.name} open for writing, its virtual machine perhaps: stop it, or wait",
            ref=path.name,
        )


def _holder(descriptor: int) -> int:
    """What kind of lock is in the way of one of ours; F_UNLCK if none is."""
    wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _WRITER, 1, 0)
    kind: int = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, wanted))[0]
    return kind
