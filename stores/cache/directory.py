"""The directory of one pool: what it is made of, whose it is, and who else is alive in it. Everything here blocks;
`stores.cache.pool` calls it in threads that it can do without.

    <pool>/layout.json                      which pool this is, and the version of this layout
    <pool>/owners/<owner>                   locked by a process for as long as it lives
    <pool>/fill/<reservation>.part  .json   what arrives
    <pool>/objects/<2 hex>/<file>   .json   what is whole: an entry and its description
    <pool>/quarantine/<file>        .json   what did not prove itself

Everything is opened below the pool's descriptors, without following symbolic links. Errors are typed (`stores.os_errors`).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from stores.cache.description import DESCRIPTION_LIMIT, LAYOUT
from stores.errors import AccessDenied, IntegrityError
from stores.os_errors import is_no_space, no_space, translate

FILL = "fill"
OBJECTS = "objects"
QUARANTINE = "quarantine"
OWNERS = "owners"
BUCKETS = tuple(f"{OBJECTS}/{number:02x}" for number in range(256))
LEDGER = "ledger.sqlite"
"""Name of an embedded ledger's file."""

FOLDERS = (OWNERS, FILL, OBJECTS, *BUCKETS, QUARANTINE)

LAYOUT_FILE = "layout.json"
_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,200}")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_MAKE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PROBE = b"storage-agent\n" * 64


@dataclass(frozen=True, slots=True)
class Seen:
    """A file or folder that is there, and the bytes that it takes on disk."""

    name: str
    blocks: int


def directory_mode(file_mode: int) -> int:
    """Whoever may read the files may pass the folders."""
    return 0o700 | (file_mode & 0o044) | (file_mode & 0o044) >> 2


class PoolDirectory:
    """The directory of the pool `name`, between `open` and `close`."""

    def __init__(self, name: str, path: Path, *, file_mode: int = 0o600) -> None:
        self.path = path  # without symbolic links, once it is open
        self.file_mode = file_mode
        self._name = name
        self._root = -1
        self._alive: list[int] = []

    def open(self) -> bool:
        """Opens the directory, and makes it where it is missing. Whether it is a pool already.

        `AccessDenied` for a directory that somebody else could change, `IntegrityError` for one of another pool or layout.
        """
        with self.touching():
            with suppress(FileExistsError):
                os.mkdir(self.path, directory_mode(self.file_mode))
            self.path = Path(os.path.realpath(self.path))
            self._root = os.open(self.path, _FOLDER)
            self._check_owner(os.fstat(self._root))
            try:
                descriptor = os.open(LAYOUT_FILE, _READ, dir_fd=self._root)
            except FileNotFoundError:
                return False
            with os.fdopen(descriptor, "rb") as file:
                self._check_layout(file.read(DESCRIPTION_LIMIT))
            return True

    def lay_out(self) -> None:
        """Makes the folders, and then the file that says so. Idempotent, and many processes may do it at once."""
        with self.touching():
            for folder in FOLDERS:
                with suppress(FileExistsError):
                    os.mkdir(folder, directory_mode(self.file_mode), dir_fd=self._root)
            with self.folder(OBJECTS) as objects:
                os.fsync(objects)
            temporary = f"{LAYOUT_FILE}.{os.getpid()}"
            self.write_new(temporary, json.dumps({"layout": LAYOUT, "pool": self._name}).encode(), self._root)
            os.rename(temporary, LAYOUT_FILE, src_dir_fd=self._root, dst_dir_fd=self._root)
            os.fsync(self._root)

    def close(self) -> None:
        """Idempotent."""
        descriptors = (*self._alive, self._root)
        self._alive, self._root = [], -1
        for descriptor in descriptors:
            if descriptor >= 0:
                os.close(descriptor)

    # ------------------------------------------------------------------------------------------------- who is alive

    def live(self, owner: str) -> None:
        """Shows to the other processes of this host that `owner` lives: until `close`, `inherit` or death. Owners before it
        seem to live as long, since threads of theirs may still write."""
        with self.touching(), self.folder(OWNERS) as owners:
            descriptor = os.open(checked(owner), _READ | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=owners)
            self._alive.append(descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def inherit(self, before: PoolDirectory) -> None:
        """Takes over what `live` shows through another opening of the same pool."""
        self._alive, before._alive = before._alive, []

    def lives(self, owner: str) -> bool:
        """Whether a process of this host still has the lock of `owner`."""
        with self.touching(), self.folder(OWNERS) as owners:
            try:
                descriptor = os.open(checked(owner), _READ, dir_fd=owners)
            except FileNotFoundError:
                return False
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            finally:
                os.close(descriptor)
            return False

    def bury(self, owner: str) -> None:
        """Removes the lock of an owner that is gone. Idempotent."""
        with self.touching(), self.folder(OWNERS) as owners:
            unlink(checked(owner), owners)

    # -------------------------------------------------------------------------------------------------------- health

    def free(self) -> int:
        """Bytes that may still be written on the pool's file system, without what it keeps for root."""
        with self.touching():
            status = os.fstatvfs(self._root)
        return 0 if status.f_files and not status.f_favail else status.f_bavail * status.f_frsize

    def probe(self) -> None:
        """Fails where a file cannot be written, made durable, read and removed."""
        name = f"probe.{os.getpid()}"
        with self.touching():
            self.write_new(name, _PROBE, self._root)
            try:
                descriptor = os.open(name, _READ, dir_fd=self._root)
                try:
                    if os.read(descriptor, len(_PROBE) + 1) != _PROBE:
                        raise OSError(errno.EIO, "it reads other bytes than were written")
                finally:
                    os.close(descriptor)
            finally:
                unlink(name, self._root)
            os.fsync(self._root)

    def listing(self, folder: str) -> list[Seen]:
        """What is in a folder of the pool; `""`: at its top."""
        with self.touching(folder), self.folder(folder) as descriptor:
            with os.scandir(descriptor) as found:
                names = [entry.name for entry in found]
            seen = []
            for name in names:
                with suppress(FileNotFoundError):
                    status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                    seen.append(Seen(name, status.st_blocks * 512))
            return seen

    # ------------------------------------------------------------------------------------------ for what is inside

    @contextmanager
    def touching(self, what: str = "", *, adding: int = 0) -> Iterator[None]:
        """Any `OSError` inside, translated. `adding`: the bytes that were to be written."""
        try:
            yield
        except OSError as error:
            where = f"the cache pool {self._name} at {self.path}" + (f": {what}" if what else "")
            if not is_no_space(error):
                raise translate(error, where, pool=self._name) from error
            raise no_space(where, needed=adding, available=0, pool=self._name) from error

    @contextmanager
    def folder(self, name: str) -> Iterator[int]:
        """A descriptor of one of `FOLDERS`."""
        descriptor = os.dup(self._root)
        try:
            for part in name.split("/") if name else ():
                below = os.open(part, _FOLDER, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = below
            yield descriptor
        finally:
            os.close(descriptor)

    @contextmanager
    def opened(self, folder: str, name: str, *, direct: bool = False) -> Iterator[tuple[int, os.stat_result]]:
        """A file of ours for reading, and its status. `IntegrityError` for anything that the pool did not make. `direct`: past
        the page cache, where the file system can."""
        with self.folder(folder) as parent:
            try:
                descriptor = _open_file(checked(name), parent, direct)
            except OSError as error:
                if error.errno == errno.ELOOP:
                    raise IntegrityError("a symbolic link is in its place", name=name) from None
                if error.errno == errno.EACCES:
                    raise IntegrityError(
                        "it may not be read any more: somebody has changed its owner", name=name
                    ) from None
                raise
        try:
            status = os.fstat(descriptor)
            fault = self._fault_of(status)
            if fault is not None:
                raise IntegrityError(fault, name=name)
            yield descriptor, status
        finally:
            os.close(descriptor)

    def write_new(self, name: str, data: bytes, folder: int) -> None:
        """A small file with that content, in the place of one that a crash left; durable but for its name."""
        unlink(name, folder)
        descriptor = os.open(name, _MAKE, 0o600, dir_fd=folder)
        try:
            os.fchmod(descriptor, self.file_mode)  # whatever the umask
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def move(self, folder: str, name: str, to_folder: str, to_name: str) -> None:
        with self.folder(folder) as source, self.folder(to_folder) as target:
            os.rename(checked(name), checked(to_name), src_dir_fd=source, dst_dir_fd=target)

    def remove(self, folder: str, *names: str) -> None:
        """Idempotent, and not durable before `sync`."""
        with self.folder(folder) as parent:
            for name in names:
                unlink(checked(name), parent)

    def sync(self, folder: str) -> None:
        """The names in a folder are durable when this returns."""
        with self.folder(folder) as descriptor:
            os.fsync(descriptor)

    def _fault_of(self, status: os.stat_result) -> str | None:
        """Where other users may read the files, a hypervisor's manager may make one theirs for as long as a guest uses it."""
        if not stat.S_ISREG(status.st_mode):
            return "it is not a regular file"
        if status.st_uid != os.geteuid() and not self.file_mode & 0o044:
            return f"it belongs to user {status.st_uid}"
        if stat.S_IMODE(status.st_mode) & ~self.file_mode:
            return f"its mode is {stat.S_IMODE(status.st_mode):o}"
        return None

    def _check_owner(self, status: os.stat_result) -> None:
        mode = stat.S_IMODE(status.st_mode)
        most = directory_mode(self.file_mode)
        if status.st_uid != os.geteuid() or mode & 0o777 & ~most:
            raise AccessDenied(
                f"the cache directory {self.path} belongs to user {status.st_uid} with mode {mode:o}: it must belong to user"
                f" {os.geteuid()} with at most mode {most:o}",
                directory=str(self.path),
            )

    def _check_layout(self, data: bytes) -> None:
        try:
            found = json.loads(data)
        except ValueError:
            found = None
        if found != {"layout": LAYOUT, "pool": self._name}:
            raise IntegrityError(
                f"{self.path} holds {data[:100]!r} and not the cache pool {self._name} of layout {LAYOUT}; give the pool a"
                " directory of its own",
                directory=str(self.path),
            )


def checked(name: str) -> str:
    """Names come from the ledger, which others write as well, and from disk."""
    if not _NAME.fullmatch(name):
        raise IntegrityError(f"{name[:100]!r} is not the name of a file in a cache pool")
    return name


def _open_file(name: str, parent: int, direct: bool) -> int:
    if direct:
        try:
            return os.open(name, _READ | os.O_DIRECT, dir_fd=parent)
        except OSError as error:
            if error.errno != errno.EINVAL:  # EINVAL: this file system has no direct I/O
                raise
    return os.open(name, _READ, dir_fd=parent)


def unlink(name: str, folder: int) -> None:
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
