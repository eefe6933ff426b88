"""A file that is being written under a temporary name, and how it gets its own. Blocking; for threads only."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stores.backends.directory import Directory, info_of, unfinished_name
from stores.contract import ObjectInfo
from stores.errors import AlreadyExists, IntegrityError, InvalidReference, StoreError
from stores.os_errors import is_no_space, no_space, translate
from stores.paths import check_ref, open_beneath

_RENAME_NOREPLACE = 1  # linux/fs.h
_FOLDER = os.O_RDONLY | os.O_DIRECTORY
_MAKE_ATTEMPTS = 100

_libc = ctypes.CDLL(None, use_errno=True)


class Draft:
    """The file of one write. `create`; then `write`, or somebody else's work on `path`; then `publish`. In any case `close`,
    which removes the file unless it was published.

    `kept`: it outlives this object and its process until it is published or discarded, and `create` goes on with one that
    is there (`found`)."""

    def __init__(
        self,
        directory: Directory,
        ref: str,
        *,
        token: str,
        size: int | None,
        replace: bool,
        file_mode: int,
        kept: bool = False,
    ) -> None:
        *self._folder, self._name = check_ref(ref)
        self.path = Path()
        self.found = False
        self._kept = kept
        self._directory = directory
        self._ref = ref
        self._temporary = unfinished_name(ref, self._name, token)
        self._size = size
        self._replace = replace
        self._mode = file_mode
        self._parent = -1
        self._descriptor = -1
        self._written = 0
        self._made: set[int] = set()  # depths of the folders that did not exist before
        self._ours = False
        self._published = False

    def create(self, *, room: bool) -> None:
        """The empty file, and the folders above it.

        `AlreadyExists` when the name is taken and this write does not replace. With `room`, `NoSpace` at once when the file
        system cannot hold the final size.
        """
        with self._directory.opened() as (root, real), self._translated():
            self._refuse_taken(root)
            for _ in range(_MAKE_ATTEMPTS):
                try:
                    self._create_below(root)
                    break
                except FileNotFoundError:
                    # Another writer has cleaned up the folder that it had made, before our file was in it.
                    continue
            else:
                raise FileNotFoundError(errno.ENOENT, "its folder keeps vanishing")
            self.path = real.joinpath(*self._folder, self._temporary)
        if room and self._size is not None:
            available = self._available() + self._held()
            if available < self._size:
                raise no_space(self._ref, needed=self._size, available=available, ref=self._ref)

    def write(self, data: memoryview) -> None:
        """The next bytes."""
        if self._size is not None and self._written + len(data) > self._size:
            raise IntegrityError(
                f"{self._ref}: {self._size} bytes were announced, and more were written",
                ref=self._ref,
                needed=self._size,
            )
        with self._translated(adding=len(data)):
            while data:
                count = os.write(self._descriptor, data)
                self._written += count
                data = data[count:]

    def resize(self) -> None:
        """Gives the file its final size."""
        with self._translated():
            os.ftruncate(self._descriptor, self._size or 0)

    def publish_again(self) -> ObjectInfo:
        """As `publish`, for an object that an earlier process renamed and may not have come to syncing."""
        with self._directory.opened() as (root, _), self._translated():
            descriptor = open_beneath(root, (*self._folder, self._name), os.O_RDONLY | os.O_NONBLOCK)
            try:
                os.fsync(descriptor)
                info = info_of(self._ref, os.fstat(descriptor))
            finally:
                os.close(descriptor)
            self._sync_folders(root)
        return info

    def publish(self) -> ObjectInfo:
        """Durable under its name when this returns."""
        with self._directory.opened() as (root, _), self._translated():
            # By name, since a tool may have put another file in the place of the one that it was given.
            descriptor = open_beneath(self._parent, (self._temporary,), os.O_RDONLY | os.O_NONBLOCK)
            try:
                self._check(os.fstat(descriptor))
                os.fsync(descriptor)
                if self._replace:
                    os.rename(self._temporary, self._name, src_dir_fd=self._parent, dst_dir_fd=self._parent)
                else:
                    rename_noreplace(self._parent, self._temporary, self._name)
                self._published = True
                info = info_of(self._ref, os.fstat(descriptor))
            finally:
                os.close(descriptor)
            self._sync_folders(root)
        return info

    def close(self) -> None:
        """Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        try:
            if not self._published and not self._kept:
                self._remove()
        finally:
            self._close_parent()

    def _create_below(self, root: int) -> None:
        self._make_folders(root)
        self._close_parent()
        self._parent = open_beneath(root, self._folder, _FOLDER)
        flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            self._descriptor = os.open(self._temporary, flags | os.O_CREAT | os.O_EXCL, self._mode, dir_fd=self._parent)
        except FileExistsError as error:
            if self._kept:
                self._descriptor = os.open(self._temporary, flags, dir_fd=self._parent)
                self.found = True
                return
            raise AlreadyExists(
                f"{self._ref} is being written by the same command already; discard what that left", ref=self._ref
            ) from error
        self._ours = True
        os.fchmod(self._descriptor, self._mode)  # whatever the umask

    def _make_folders(self, root: int) -> None:
        mode = self._mode | (self._mode & 0o444) >> 2  # whoever may read the files may pass the folders
        for depth in range(len(self._folder)):
            above = open_beneath(root, self._folder[:depth], os.O_PATH | os.O_DIRECTORY)
            try:
                os.mkdir(self._folder[depth], mode, dir_fd=above)
                self._made.add(depth)
            except FileExistsError:
                continue
            finally:
                os.close(above)

    def _refuse_taken(self, root: int) -> None:
        try:
            descriptor = open_beneath(root, (*self._folder, self._name), os.O_PATH)
        except FileNotFoundError:
            return
        try:
            if not self._replace or stat.S_ISDIR(os.fstat(descriptor).st_mode):
                raise FileExistsError(errno.EEXIST, "taken")
        finally:
            os.close(descriptor)

    def _check(self, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise InvalidReference(f"{self._ref} was not written as a regular file", ref=self._ref)
        if self._size is not None and status.st_size != self._size:
            raise IntegrityError(
                f"{self._ref}: {self._size} bytes were announced and {status.st_size} were written",
                ref=self._ref,
                needed=self._size,
                seen=status.st_size,
            )

    def _sync_folders(self, root: int) -> None:
        """All of them up to the root: another writer may have made one and not have come to syncing it."""
        for depth in range(len(self._folder), -1, -1):
            descriptor = open_beneath(root, self._folder[:depth], _FOLDER)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _remove(self) -> None:
        with self._translated():
            if self._ours:
                self._ours = False
                with suppress(FileNotFoundError):
                    os.unlink(self._temporary, dir_fd=self._parent)
            if self._made:
                with self._directory.opened() as (root, _):
                    self._remove_folders(root)

    def _remove_folders(self, root: int) -> None:
        with suppress(OSError):  # gone already, or in use by somebody: then those above it are as well
            for depth in sorted(self._made, reverse=True):
                above = open_beneath(root, self._folder[:depth], os.O_PATH | os.O_DIRECTORY)
                try:
                    os.rmdir(self._folder[depth], dir_fd=above)
                finally:
                    os.close(above)
        self._made.clear()

    def _close_parent(self) -> None:
        if self._parent >= 0:
            os.close(self._parent)
            self._parent = -1

    @contextmanager
    def _translated(self, *, adding: int = 1) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._error(error, adding) from error

    def _error(self, error: OSError, adding: int) -> StoreError:
        if is_no_space(error):
            held = self._held()
            free = 0 if error.errno == errno.EDQUOT else self._available()
            needed = max(self._size or 0, held + adding)
            return no_space(self._ref, needed=needed, available=held + free, ref=self._ref)
        if error.errno == errno.ENOTDIR:
            return AlreadyExists(f"{self._ref} cannot be written: a part of its path is an object", ref=self._ref)
        return translate(error, self._ref, ref=self._ref)

    def _held(self) -> int:
        """Bytes that the unfinished file takes on the disk."""
        try:
            return os.stat(self._temporary, dir_fd=self._parent, follow_symlinks=False).st_blocks * 512
        except OSError:
            return 0

    def _available(self) -> int:
        """Bytes that are free for everybody, so without those that the file system keeps for root; none without inodes."""
        if self._parent < 0:
            return 0
        status = os.fstatvfs(self._parent)
        return 0 if status.f_files and not status.f_favail else status.f_bavail * status.f_frsize


def rename_noreplace(folder: int, old: str, new: str) -> None:
    """Rename inside a folder in one step; `FileExistsError` if the new name is taken."""
    if _libc.renameat2(folder, os.fsencode(old), folder, os.fsencode(new), _RENAME_NOREPLACE) == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(code, os.strerror(code), new)
    link_noreplace(folder, old, new)


def link_noreplace(folder: int, old: str, new: str) -> None:
    """The same for file systems without that flag, NFS among them. A crash in between leaves both names on one whole file."""
    try:
        os.link(old, new, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        # NFS says so too when it repeated a request whose answer got lost: then the name is ours.
        ours = os.stat(old, dir_fd=folder, follow_symlinks=False)
        if not os.path.samestat(ours, os.stat(new, dir_fd=folder, follow_symlinks=False)):
            raise
    os.unlink(old, dir_fd=folder)
