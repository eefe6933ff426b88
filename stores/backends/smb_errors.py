"""What SMB servers and smbprotocol report, as errors of `stores.errors`. The only place that reads NTSTATUS values.

Values: [MS-ERREF] 2.3.1. The library's own messages are never quoted: they name users and dump packets.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from smbprotocol.exceptions import SMBAuthenticationError, SMBException, SMBResponseException

from stores.errors import (
    AccessDenied,
    AlreadyExists,
    DeviceFault,
    InvalidReference,
    NoSpace,
    NotFound,
    PolicyRefused,
    StoreError,
    StoreUnsupported,
    Unavailable,
)

NO_MORE_FILES = 0x80000006
NO_SUCH_FILE = 0xC000000F
ACCESS_DENIED = 0xC0000022
NAME_NOT_FOUND = 0xC0000034
NAME_COLLISION = 0xC0000035
PATH_NOT_FOUND = 0xC000003A
DELETE_PENDING = 0xC0000056
IS_A_DIRECTORY = 0xC00000BA
NOT_EMPTY = 0xC0000101
NOT_A_DIRECTORY = 0xC0000103

MISSING = frozenset({NO_SUCH_FILE, NAME_NOT_FOUND, PATH_NOT_FOUND, 0xC000003B, 0xC0000225, DELETE_PENDING})
"""There is no such name, or there will be none as soon as the last handle is closed."""

_GONE = frozenset({0xC00000C9, 0xC0000203, 0xC000035C, 0xC000020C, 0xC000020D, 0xC0000128})
"""The session, the share or the handle of this connection ended; another connection may have them."""

_DENIED = "is denied to this user by share or file permissions"
_LOGIN = "refused the user or the password; check the credentials of the store"
_FULL = "has no room left, or the user's quota is used up; free space or use another store"

_CLASSES: dict[int, tuple[type[StoreError], str]] = {
    **dict.fromkeys(MISSING, (NotFound, "does not exist")),
    IS_A_DIRECTORY: (NotFound, "is a directory, not an object"),
    NOT_A_DIRECTORY: (NotFound, "does not exist: a part of its path is not a directory"),
    NAME_COLLISION: (AlreadyExists, "exists already; nothing was overwritten"),
    NOT_EMPTY: (AlreadyExists, "is a directory that is not empty"),
    0xC0000033: (InvalidReference, "has a name that the server does not take"),
    0xC0000039: (InvalidReference, "has a path that the server does not take"),
    0x8000002D: (InvalidReference, "passes through a symbolic link, which is never followed"),
    0xC0000043: (Unavailable, "is in use by somebody who does not share it (sharing violation)"),
    0xC0000054: (Unavailable, "is in use: somebody has locked a part of it"),
    0xC0000184: (Unavailable, "is in use"),
    ACCESS_DENIED: (AccessDenied, _DENIED),
    0xC0000061: (AccessDenied, _DENIED),
    0xC0000121: (AccessDenied, "cannot be deleted: it is read-only or in use"),
    **dict.fromkeys(
        (0xC000006A, 0xC000006D, 0xC000006E, 0xC0000070, 0xC0000071, 0xC0000072, 0xC0000193, 0xC0000224, 0xC0000234),
        (AccessDenied, _LOGIN),
    ),
    0xC000015B: (AccessDenied, "does not let this user log on over the network"),
    0xC00000CC: (NotFound, "has no share of that name"),
    0xC0000257: (StoreUnsupported, "lies behind a DFS link; name the server that has it"),
    0xC000007F: (NoSpace, _FULL),
    0xC0000044: (NoSpace, _FULL),
    0xC0000904: (DeviceFault, "is larger than the server's file system allows"),
    **dict.fromkeys(
        (0xC000009A, 0xC0000205, 0xC00000D0, 0xC00000B5, 0xC0000466, 0xC0000120, 0xC00000E8, *_GONE),
        (Unavailable, "cannot be used now: the server is busy, or ended the session"),
    ),
}


class Lost(Exception):
    """The connection broke, fell silent, or carried what cannot be trusted: of no further use. `str` says which."""


def status_of(error: Exception) -> int | None:
    """The NTSTATUS that a server answered; None for everything else."""
    return int(error.status) if isinstance(error, SMBResponseException) else None


def is_lost(error: Exception) -> bool:
    """Whether another connection may be able to do what failed."""
    if isinstance(error, SMBResponseException):
        return status_of(error) in _GONE
    return isinstance(error, (Lost, OSError)) or (
        isinstance(error, SMBException) and not isinstance(error, SMBAuthenticationError)
    )


def translate(error: Exception, what: str, **details: object) -> StoreError:
    """The error of ours for `error`, which happened to `what` (a ref, or a place)."""
    status = status_of(error)
    if status is not None:
        kind, text = _CLASSES.get(status, (DeviceFault, "failed on the server; look at its file system and its log"))
        return kind(f"{what} {text}", status=f"0x{status:08X}", **details)
    if isinstance(error, SMBAuthenticationError):
        return AccessDenied(f"{what} {_LOGIN}, and which mechanisms both sides have", **details)
    reason = str(error) if isinstance(error, Lost) else "the connection broke, or carried what is not valid"
    return Unavailable(f"{what} cannot be reached: {reason}", **details)


def not_private(what: str, needed: str) -> StoreError:
    """A server or session without what protects it."""
    return PolicyRefused(
        f"{what} gives no {needed}: turn it on at the server (SMB 3); encryption alone can be done without"
        " (smb.encryption)",
        needed=needed,
    )


@contextmanager
def translated(what: str, **details: object) -> Iterator[None]:
    """Whatever a server or the library raises inside, as a typed error. Not chained: causes would be logged with packets."""
    try:
        yield
    except (SMBException, OSError, Lost) as error:
        raise translate(error, what, **details) from None
