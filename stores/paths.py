"""Confinement: names from commands stay inside the directory of their store.

`check_ref` judges a name by itself. `open_beneath` opens it below a directory in such a way that the kernel refuses every
escape: openat2(2) with RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS and RESOLVE_NO_MAGICLINKS, or, where that call is missing (before
Linux 5.6, or filtered), one component after the other with O_NOFOLLOW. A symbolic link is refused as such, so the answer
is the same whether or not what it points at exists.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
import struct
from collections.abc import Sequence
from pathlib import Path

from stores.errors import InvalidReference, PolicyRefused

RECORDS = ".storage-agent"
"""Top-level folder of our own records in a store. Listings show it only to whoever asks for it by name."""

REF_LIMIT = 1024
"""Longest ref in bytes: the limit of S3 keys, which is well below PATH_MAX."""

NAME_LIMIT = 255
"""Longest component in bytes: NAME_MAX of every Linux file system that is used for images."""

_TEMPORARY_SUFFIX = ".partial"
_TEMPORARY = re.compile(r"\..*\.[0-9a-f]{16}\.partial", re.DOTALL)

# linux/openat2.h. The number is the same on every architecture but alpha: the call is newer than the common table.
_SYS_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
_OPEN_HOW = struct.Struct("QQQ")  # flags, mode, resolve

_libc = ctypes.CDLL(None, use_errno=True)


def check_ref(ref: str) -> tuple[str, ...]:
    """The components of a well-formed ref; `InvalidReference` for any other. Looks at nothing but the text."""
    problem = _problem(ref)
    if problem:
        raise InvalidReference(
            f"not a name inside a store: it {problem}", ref=ref[:200].encode("unicode_escape").decode()
        )
    return tuple(ref.split("/"))


def is_ref(ref: str) -> bool:
    """Whether `check_ref` accepts it."""
    return _problem(ref) is None


def _problem(ref: str) -> str | None:
    if not ref:
        return "is empty"
    if any(ord(char) < 0x20 or ord(char) == 0x7F for char in ref):
        return "contains a control character"
    try:
        size = len(ref.encode())
    except UnicodeEncodeError:
        return "is not valid Unicode"
    if size > REF_LIMIT:
        return f"is longer than {REF_LIMIT} bytes"
    if ref.startswith("/"):
        return "is absolute"
    for component in ref.split("/"):
        if component in ("", ".", ".."):
            return "has a component that is empty, '.' or '..'"
        if component.startswith("-"):
            return "has a component that begins with '-'"
        if len(component.encode()) > NAME_LIMIT:
            return f"has a component longer than {NAME_LIMIT} bytes"
        if is_temporary(component):
            return "has a component of the form that unfinished files have"
    return None


def is_temporary(name: str) -> bool:
    """Whether a file name is one that an unfinished write has."""
    return _TEMPORARY.fullmatch(name) is not None


def temporary_name(name: str, tag: str) -> str:
    """The name under which a file called `name` is written by the writer `tag` (16 hex digits)."""
    room = NAME_LIMIT - len(tag) - len(_TEMPORARY_SUFFIX) - 2
    return f".{name.encode()[:room].decode(errors='ignore')}.{tag}{_TEMPORARY_SUFFIX}"


def check_prefix(prefix: str) -> str:
    """The prefix of a listing without its trailing slash; empty means everything. `InvalidReference` if malformed."""
    if not prefix:
        return ""
    return "/".join(check_ref(prefix.removesuffix("/")))


def in_listing(ref: str, prefix: str) -> bool:
    """Whether a listing of a checked `prefix` shows `ref`: whole components only, records only when asked for."""
    if prefix:
        return ref == prefix or ref.startswith(prefix + "/")
    return ref.partition("/")[0] != RECORDS


def allowed_directory(path: Path, roots: Sequence[Path]) -> Path:
    """`path` without symbolic links, if that is one of `roots` or below one. Blocking. The directory need not exist."""
    if not path.is_absolute() or ".." in path.parts or "\0" in str(path):
        raise InvalidReference("a directory must be an absolute path without '..'", directory=str(path)[:200])
    real = Path(os.path.realpath(path))
    if any(real.is_relative_to(os.path.realpath(root)) for root in roots):
        return real
    listed = ", ".join(str(root) for root in roots) or "nothing"
    raise PolicyRefused(
        f"directory {path} is not below an allowed one ({listed}); add its parent to the setting pools.roots to allow it",
        directory=str(path),
        roots=[str(root) for root in roots],
    )


def open_directory(path: Path) -> int:
    """A descriptor of an absolute directory path that contains no symbolic link, for use with `open_beneath`."""
    if path == Path("/"):
        return os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    base = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return open_beneath(base, path.parts[1:], os.O_PATH | os.O_DIRECTORY)
    finally:
        os.close(base)


def open_beneath(directory: int, components: Sequence[str], flags: int, mode: int = 0) -> int:
    """Open `components` below the directory descriptor; without components, that directory itself.

    Raises `OSError`: ELOOP where a component is a symbolic link, the others as open(2) does.
    """
    if not components:
        return os.open(".", flags | os.O_CLOEXEC, dir_fd=directory)
    flags |= os.O_CLOEXEC
    try:
        return _openat2(directory, "/".join(components), flags, mode)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            raise
    return open_stepwise(directory, components, flags, mode)


def _openat2(directory: int, path: str, flags: int, mode: int) -> int:
    resolve = _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS
    how = _OPEN_HOW.pack(flags, mode, resolve)
    while True:
        result = _libc.syscall(_SYS_OPENAT2, directory, os.fsencode(path), ctypes.c_char_p(how), len(how))
        if result >= 0:
            return int(result)
        code = ctypes.get_errno()
        # EAGAIN: the kernel could not rule out a race with a rename (openat2(2)); the same call again decides.
        if code not in (errno.EAGAIN, errno.EINTR):
            raise OSError(code, os.strerror(code), path)


def open_stepwise(directory: int, components: Sequence[str], flags: int, mode: int = 0) -> int:
    """`open_beneath` for kernels without openat2."""
    current = os.dup(directory)
    try:
        for component in components[:-1]:
            current = _replace(current, _step(current, component, os.O_PATH | os.O_DIRECTORY, 0))
        return _step(current, components[-1], flags, mode)
    finally:
        os.close(current)


def _replace(old: int, new: int) -> int:
    os.close(old)
    return new


def _step(directory: int, component: str, flags: int, mode: int) -> int:
    try:
        descriptor = os.open(component, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=directory)
    except NotADirectoryError:
        # With O_DIRECTORY a symbolic link reports ENOTDIR; openat2 says ELOOP, and so do we.
        if stat.S_ISLNK(os.stat(component, dir_fd=directory, follow_symlinks=False).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), component) from None
        raise
    # O_PATH with O_NOFOLLOW opens the link itself instead of refusing it.
    if flags & os.O_PATH and stat.S_ISLNK(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), component)
    return descriptor
