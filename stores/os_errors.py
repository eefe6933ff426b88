"""What the operating system reports about files, in our terms."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from stores.errors import (
    AccessDenied,
    AlreadyExists,
    DeviceFault,
    InvalidReference,
    NoSpace,
    NotFound,
    StoreError,
    TooLarge,
    Unavailable,
)

_CLASSES: dict[int, tuple[type[StoreError], str]] = {
    errno.ENOENT: (NotFound, "does not exist"),
    errno.ENOTDIR: (NotFound, "does not exist: a part of its path is not a directory"),
    errno.EEXIST: (AlreadyExists, "exists already; nothing was overwritten"),
    errno.ENOTEMPTY: (AlreadyExists, "is a directory that is not empty"),
    errno.EISDIR: (AlreadyExists, "is a directory"),
    errno.EACCES: (AccessDenied, "may not be used by this process: check owner, permissions and the service's sandbox"),
    errno.EPERM: (
        AccessDenied,
        "may not be changed by this process: check owner, attributes and the service's sandbox",
    ),
    errno.ELOOP: (InvalidReference, "passes through a symbolic link, which is never followed"),
    errno.EXDEV: (InvalidReference, "leaves its directory"),
    errno.ENAMETOOLONG: (InvalidReference, "is longer than the file system allows"),
    errno.EFBIG: (TooLarge, "is larger than the file system allows"),
    errno.EMFILE: (Unavailable, "cannot be opened now: this process has too many open files"),
    errno.ENFILE: (Unavailable, "cannot be opened now: this host has too many open files"),
    errno.ENOMEM: (Unavailable, "cannot be used now: this host is out of memory"),
    errno.EBUSY: (Unavailable, "is in use"),
    errno.EAGAIN: (Unavailable, "is in use"),
}


def translate(error: OSError, what: str, **details: object) -> StoreError:
    """The error of ours for `error`, which happened to `what` (a path or a ref). Full disks: see `no_space`.

    What is not known here is a fault of the disk or mount: those report by many numbers (EIO, EROFS, ESTALE, EREMOTEIO,
    ENOTCONN, EUCLEAN, ...), and an operator has to look at each of them.
    """
    code = error.errno or errno.EIO
    name = errno.errorcode.get(code, str(code))
    kind, text = _CLASSES.get(code, (DeviceFault, f"failed: {os.strerror(code)}; check the disk or mount below it"))
    return kind(f"{what} {text}", errno=name, **details)


@contextmanager
def translated(what: str, **details: object) -> Iterator[None]:
    """Any `OSError` inside, translated."""
    try:
        yield
    except OSError as error:
        raise translate(error, what, **details) from error


def is_no_space(error: OSError) -> bool:
    """Whether a file system or a quota is full."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def no_space(what: str, *, needed: int, available: int, **details: object) -> NoSpace:
    """`needed` and `available` in bytes."""
    return NoSpace(
        f"no room for {what}: {needed} bytes are needed and {available} are available; free space or use another pool",
        needed=needed,
        available=available,
        **details,
    )
