"""The blocking half of the filesystem store: what is done to files below one directory. For threads only.

Every call opens the directory anew and checks it, so that nothing is written into the empty directory that an unmounted
share leaves behind. Names are opened with `open_beneath` and nothing else. All errors are `StoreError`s.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from stores.backends.folders import in_order
from stores.contract import Extent, ObjectInfo, Usage
from stores.errors import DeviceFault, IntegrityError, InvalidReference, NotFound, ObjectChanged
from stores.os_errors import translated
from stores.paths import allowed_directory, check_ref, is_ref, open_beneath, open_directory, temporary_name

# O_NONBLOCK: opening a FIFO that somebody put there must not wait for its other end; it is refused afterwards.
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY


def info_of(ref: str, status: os.stat_result) -> ObjectInfo:
    """The version is inode, size and time of the last change of content. Before Linux 6.13 that time moves in ticks of some
    milliseconds: a second change of the same size within one tick is not told apart there."""
    version = f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"
    return ObjectInfo(ref, status.st_size, version=version, modified=status.st_mtime)


class Directory:
    """The directory of one store.

    `allowed`: directories in or below which its real path must lie. `mounted`: it must be a mount point. `made`: it is made
    where it is missing, for nobody but this process's user.
    """

    def __init__(self, path: Path, *, allowed: Sequence[Path], mounted: bool, made: bool = False) -> None:
        self._path = path
        self._allowed = tuple(allowed)
        self._mounted = mounted
        self._made = made

    @contextmanager
    def opened(self) -> Iterator[tuple[int, Path]]:
        """A descriptor of the directory, and its path without symbolic links."""
        real = allowed_directory(self._path, self._allowed)
        with translated(f"directory {self._path}", directory=str(self._path)):
            if self._made:
                os.makedirs(real, 0o700, exist_ok=True)
            descriptor = open_directory(real)
        try:
            if self._mounted:
                with translated(f"directory {self._path}", directory=str(self._path)):
                    mounted = _is_mount_point(descriptor)
                if not mounted:
                    raise DeviceFault(
                        f"nothing is mounted at {self._path}; mount the pool there first", directory=str(self._path)
                    )
            yield descriptor, real
        finally:
            os.close(descriptor)

    def path_of(self, info: ObjectInfo) -> Path:
        """The path of an object that still has this version."""
        components = check_ref(info.ref)
        expect_version(info, self.stat(info.ref))
        with self.opened() as (_, real):
            return real.joinpath(*components)

    def stat(self, ref: str) -> ObjectInfo:
        components = check_ref(ref)
        with self.opened() as (root, _), translated(ref, ref=ref):
            descriptor = open_beneath(root, components, os.O_PATH)
            try:
                return info_of(ref, _regular(ref, descriptor))
            finally:
                os.close(descriptor)

    def entries(self, folder: Sequence[str]) -> list[ObjectInfo]:
        """What is in a folder, in the order of the refs of all objects in and below it; none where there is no folder.

        Only what a ref can name: neither unfinished files nor links, sockets and the like.
        """
        with self.opened() as (root, _), translated("/".join(folder) or ".", ref="/".join(folder)):
            descriptor = _open_folder(root, folder)
            if descriptor is None:
                return []
            try:
                return _entries(descriptor, folder)
            finally:
                os.close(descriptor)

    def remove(self, ref: str) -> None:
        """Durably; a missing object is success, and so is a directory, which is not an object."""
        *folder, name = check_ref(ref)
        self._unlink(ref, folder, name)

    def remove_unfinished(self, ref: str, token: str) -> None:
        """The file that a write of `ref` by `token` was filling, if there is one."""
        *folder, name = check_ref(ref)
        self._unlink(ref, folder, unfinished_name(ref, name, token))

    def _unlink(self, ref: str, folder: Sequence[str], name: str) -> None:
        with self.opened() as (root, _), translated(ref, ref=ref):
            descriptor = _open_folder(root, folder)
            if descriptor is None:
                return
            try:
                with suppress(FileNotFoundError, IsADirectoryError):
                    os.unlink(name, dir_fd=descriptor)
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def usage(self) -> Usage:
        with self.opened() as (root, _), translated(str(self._path)):
            status = os.fstatvfs(root)
        used = status.f_blocks - status.f_bfree
        # What is kept for root is no room: a file system is full when the agent cannot write any more.
        return Usage(used=used * status.f_frsize, capacity=(used + status.f_bavail) * status.f_frsize)


class OpenedFile:
    """A file that is read while it keeps the version it was opened with. Closing is up to the owner."""

    def __init__(self, directory: Directory, info: ObjectInfo) -> None:
        self.info = info
        self._directory = directory
        self._descriptor = -1

    def open(self) -> None:
        """Into this object, so that a descriptor cannot get lost on its way to a caller who was cancelled."""
        ref = self.info.ref
        components = check_ref(ref)
        with self._directory.opened() as (root, _), translated(ref, ref=ref):
            self._descriptor = open_beneath(root, components, _READ)
            found = info_of(ref, _regular(ref, self._descriptor))
        expect_version(self.info, found)
        self.info = found

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def read_into(self, offset: int, buffer: memoryview) -> None:
        self._check_range(offset, len(buffer))
        with translated(self.info.ref, ref=self.info.ref):
            while buffer:
                count = os.preadv(self._descriptor, [buffer], offset)
                if not count:
                    break
                buffer = buffer[count:]
                offset += count
            # After the read: had the file changed before or during it, the new version would show here.
            expect_version(self.info, info_of(self.info.ref, os.fstat(self._descriptor)))
        if buffer:
            raise IntegrityError(f"{self.info.ref} ended early, at byte {offset}", ref=self.info.ref, seen=offset)

    def read_each(
        self,
        take: Callable[[], tuple[int, memoryview] | None],
        put: Callable[[int, memoryview], None],
        stopped: threading.Event,
    ) -> None:
        """`read_into` for whatever `take` wants, until it wants no more or `stopped` is set."""
        while not stopped.is_set():
            wanted = take()
            if wanted is None:
                return
            self.read_into(*wanted)
            put(*wanted)

    def extents(self, offset: int, length: int) -> list[Extent]:
        """Holes as the file system reports them (lseek(2), SEEK_DATA and SEEK_HOLE)."""
        self._check_range(offset, length)
        end = offset + length
        runs: list[Extent] = []
        with translated(self.info.ref, ref=self.info.ref):
            while offset < end:
                data = min(self._seek(offset, os.SEEK_DATA), end)
                if data > offset:
                    runs.append(Extent(offset, data - offset, zero=True))
                if data < end:
                    hole = min(self._seek(data, os.SEEK_HOLE), end)
                    runs.append(Extent(data, hole - data, zero=False))
                    data = hole
                offset = data
        return runs

    def _seek(self, offset: int, whence: int) -> int:
        try:
            return os.lseek(self._descriptor, offset, whence)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data from there to the end, or the file was cut shorter meanwhile
                return self.info.size or 0
            raise

    def _check_range(self, offset: int, length: int) -> None:
        size = self.info.size or 0
        if offset < 0 or offset + length > size:
            raise IntegrityError(
                f"{self.info.ref} ends at byte {size}, and bytes up to {offset + length} were asked for",
                ref=self.info.ref,
                size=size,
                needed=offset + length,
            )


def expect_version(expected: ObjectInfo, found: ObjectInfo) -> None:
    """`ObjectChanged` unless they agree; an expectation without a version agrees with any."""
    if expected.version is not None and expected.version != found.version:
        raise ObjectChanged(
            f"{expected.ref} changed since it was looked at; start again",
            ref=expected.ref,
            expected=expected.version,
            found=found.version,
        )


def unfinished_name(ref: str, name: str, token: str) -> str:
    """The name of the file that `token` fills before it becomes `ref`. Nobody else's has it."""
    return temporary_name(name, hashlib.sha256(f"{ref}\0{token}".encode()).hexdigest()[:16])


def _open_folder(root: int, folder: Sequence[str]) -> int | None:
    try:
        return open_beneath(root, folder, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _regular(ref: str, descriptor: int) -> os.stat_result:
    status = os.fstat(descriptor)
    if stat.S_ISDIR(status.st_mode):
        raise NotFound(f"{ref} is a directory, not an object", ref=ref)
    if not stat.S_ISREG(status.st_mode):
        raise InvalidReference(f"{ref} is not a regular file", ref=ref)
    return status


def _entries(descriptor: int, folder: Sequence[str]) -> list[ObjectInfo]:
    found = []
    with os.scandir(descriptor) as entries:
        for entry in entries:
            ref = "/".join((*folder, entry.name))
            if not is_ref(ref):
                continue
            with suppress(FileNotFoundError):  # removed since the directory was read
                if entry.is_dir(follow_symlinks=False):
                    found.append(ObjectInfo(ref, None, is_dir=True))
                elif entry.is_file(follow_symlinks=False):
                    found.append(info_of(ref, entry.stat(follow_symlinks=False)))
    return in_order(found)


def _is_mount_point(descriptor: int) -> bool:
    parent = os.open("..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=descriptor)
    try:
        return _mount_id(parent) != _mount_id(descriptor)
    finally:
        os.close(parent)


def _mount_id(descriptor: int) -> str:
    """As the kernel numbers mounts: unlike the device number, right for bind mounts too (proc_pid_fdinfo(5))."""
    with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as lines:
        return next(line for line in lines if line.startswith("mnt_id:"))
