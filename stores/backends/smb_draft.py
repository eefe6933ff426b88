"""A file of a share that is being written under a temporary name, and how it gets its own. Blocking; for threads.

A connection that breaks ends the write: what a server has confirmed but not flushed may be lost with it, and nobody could tell.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import structlog
from smbprotocol.exceptions import SMBException, SMBResponseException

from stores.backends.directory import unfinished_name
from stores.backends.smb_calls import (
    CREATE,
    FILE,
    FOLDER,
    LOOK,
    WRITE,
    begin_flush,
    close,
    create,
    flush,
    flush_folder,
    found,
    look,
    opened,
    remove,
    rename,
    stat,
    usage,
)
from stores.backends.smb_copy import copy_chunks
from stores.backends.smb_errors import MISSING, NAME_COLLISION, NOT_A_DIRECTORY, Lost, is_lost, status_of, translated
from stores.backends.smb_gone import remove_at_last
from stores.backends.smb_link import Link
from stores.backends.smb_links import Hold, Links
from stores.backends.smb_names import check_name, wire_path
from stores.contract import MiB, ObjectInfo
from stores.errors import AlreadyExists, IntegrityError, NoSpace, NotFound, StoreError, Unavailable
from stores.os_errors import no_space

_log = structlog.get_logger(__name__)

_MAKE_ATTEMPTS = 100

FLUSHED = 128 * MiB
"""So often the server is told to begin with its disk, which else has nothing to do until all is there, and everything then."""


class SmbDraft:
    """The file of one write: `create`; `write` or `copy`; `publish`. In any case `close`, which removes it unless published."""

    def __init__(self, links: Links, ref: str, *, token: str, size: int | None, replace: bool) -> None:
        *folders, name = check_name(ref)
        base = links.place.folder
        self._links = links
        self._ref = ref
        self._folders = [wire_path(*base, *folders[:depth]) for depth in range(len(folders) + 1)]
        self._path = wire_path(*base, *folders, name)
        self._temporary = wire_path(*base, *folders, unfinished_name(ref, name, token))
        self._size = size
        self._replace = replace
        self._link: Link | None = None
        self._handle = b""
        self._index = 0
        self._written = 0
        self._flushed = 0  # how much of that a flush was begun for
        self._flushing: Any = None
        self._under_way: deque[tuple[Callable[[], bytes], int]] = deque()  # waits for an answer; what it should confirm
        self._made: list[str] = []
        self._ours = False  # whether there may be a temporary file of this write
        self._published = False

    def create(self, hold: Hold) -> None:
        """The empty file, and the folders above it. `AlreadyExists`, or `NoSpace` for an announced size, before bytes move."""
        with translated(self._ref, ref=self._ref):
            self._link, there = self._links.begin(lambda link: found(link, self._path), hold)
            if there is not None and (there.is_dir or not self._replace):
                raise AlreadyExists(f"{self._ref} exists already; nothing was overwritten", ref=self._ref)
            with hold.on(self._link):
                self._refuse_full(self._link)
                self._create(self._link)
                self._index = look(self._link, self._handle).index

    def write(self, data: memoryview, hold: Hold) -> None:
        """The next bytes. What fails on the server is raised by this call or a later one."""
        if self._size is not None and self._written + len(data) > self._size:
            raise IntegrityError(
                f"{self._ref}: {self._size} bytes were announced, and more were written",
                ref=self._ref,
                needed=self._size,
            )
        with self._working(hold) as link:
            while data:
                if len(self._under_way) >= link.width:
                    self._confirm()
                piece, data = data[: link.piece], data[link.piece :]
                self._under_way.append((link.send_write(self._handle, self._written, piece), len(piece)))
                self._written += len(piece)
            if self._written - self._flushed >= FLUSHED:
                self._await_flush(link)
                self._flushing, self._flushed = begin_flush(link, self._handle), self._written

    def copy(self, source: ObjectInfo, path: str, hold: Hold) -> None:
        """All of another file of the share, by the server itself. `StoreUnsupported` where it does not do that."""
        with self._working(hold) as link:
            self._written = copy_chunks(link, source, path, self._handle)

    def publish(self, hold: Hold) -> ObjectInfo:
        """Durable under its name when this returns, as far as the server flushes."""
        with self._working(hold) as link:
            while self._under_way:
                self._confirm()
            self._await_flush(link)
            self._check(look(link, self._handle).size)
            flush(link, self._handle)
            try:
                rename(link, self._handle, self._path, replace=self._replace)
                self._published = True
                return self._settled(link)
            except Exception as error:
                if not is_lost(error):
                    raise
        # Whether the rename was carried out, only the server knows.
        return self._look_again(hold)

    def close(self) -> None:
        """Idempotent. What cannot be removed now is logged: `discard` finds it."""
        link, self._link = self._link, None
        if link is not None:
            self._end(link)
            self._links.give(link)
        if not self._published and (self._ours or self._made):
            try:
                self._remove()
            except StoreError as error:
                _log.warning("an unfinished file stays", store=self._links.place.name, ref=self._ref, error=error.kind)

    # -------------------------------------------------------------------------------------------------- steps

    def _create(self, link: Link) -> None:
        for _ in range(_MAKE_ATTEMPTS):
            self._make_folders(link)
            self._ours = True
            try:
                self._handle = create(link, self._temporary, WRITE, CREATE, FILE)
                return
            except SMBResponseException as error:
                self._ours = False  # an answer that says no: nothing was made
                status = status_of(error)
                if status == NAME_COLLISION:
                    raise AlreadyExists(
                        f"{self._ref} is being written by the same command already; discard what that left",
                        ref=self._ref,
                    ) from None
                if status not in MISSING | {NOT_A_DIRECTORY}:
                    raise
                # Another writer has cleaned up the folder that it had made, before our file was in it.
                self._refuse_other_path(link)
        raise Unavailable(f"{self._ref} cannot be written: its folder keeps vanishing", ref=self._ref)

    def _make_folders(self, link: Link) -> None:
        for folder in self._folders[1:]:
            if found(link, folder) is not None:
                continue
            if folder not in self._made:
                self._made.append(folder)  # before it is: the answer may get lost
            try:
                close(link, create(link, folder, LOOK, CREATE, FOLDER))
            except SMBResponseException as error:
                self._made.remove(folder)
                if status_of(error) not in MISSING | {NAME_COLLISION, NOT_A_DIRECTORY}:
                    raise

    def _refuse_other_path(self, link: Link) -> None:
        """Unless it may be there at the next try."""
        if found(link, self._folders[0]) is None:
            raise NotFound(f"the folder {self._links.place.name} does not exist; make it there", ref=self._ref)
        for folder in self._folders[1:]:
            there = found(link, folder)
            if there is not None and not there.is_dir:
                raise AlreadyExists(f"{self._ref} cannot be written: a part of its path is an object", ref=self._ref)

    def _refuse_full(self, link: Link) -> None:
        if self._size:
            room = self._room(link)
            if room < self._size:
                raise no_space(self._ref, needed=self._size, available=room, ref=self._ref)

    def _room(self, link: Link) -> int:
        there = usage(link, self._folders[0])
        return (there.capacity or 0) - there.used

    def _confirm(self) -> None:
        answer, length = self._under_way.popleft()
        (count,) = struct.unpack_from("<I", answer(), 4)  # [MS-SMB2] 2.2.22
        if count != length:
            raise IntegrityError(f"{self._ref}: the server took {count} of {length} bytes", ref=self._ref)

    def _await_flush(self, link: Link) -> None:
        """The one that is under way, if any."""
        if self._flushing is not None:
            request, self._flushing = self._flushing, None
            link.receive(request)

    def _check(self, size: int) -> None:
        announced = self._written if self._size is None else self._size
        if not size == self._written == announced:
            raise IntegrityError(
                f"{self._ref}: {announced} bytes were announced, {self._written} were written and {size} are there",
                ref=self._ref,
                needed=announced,
                seen=size,
            )

    def _settled(self, link: Link) -> ObjectInfo:
        """After the rename. Closed first: the time of the last write is only final then."""
        flush(link, self._handle)
        close(link, self._handle)
        self._handle = b""
        for folder in reversed(self._folders):
            flush_folder(link, folder)
        return stat(link, self._path).info(self._ref)

    def _look_again(self, hold: Hold) -> ObjectInfo:
        """What became of the rename. The temporary file goes first: it cannot be renamed any more then."""

        def decide(link: Link) -> ObjectInfo | None:
            if not self._published and remove_at_last(link, self._temporary):
                return None
            there = found(link, self._path)
            if there is None or there.index != self._index or there.size != self._written:
                return None
            with opened(link, self._path, WRITE, FILE) as handle:
                flush(link, handle)
            for folder in reversed(self._folders):
                flush_folder(link, folder)
            return stat(link, self._path).info(self._ref)

        with translated(self._ref, ref=self._ref):
            link, info = self._links.begin(decide, hold)
        self._links.give(link)
        if info is None:
            self._published = False
            raise Unavailable(f"{self._ref} was not stored: the connection broke at its end", ref=self._ref)
        self._published = True
        return info

    def _end(self, link: Link) -> None:
        """Nothing of this write is open or under way on `link` any more, or `link` is closed."""
        with suppress(SMBException, OSError, Lost):
            while self._under_way and link.alive:
                answer, _ = self._under_way.popleft()
                with suppress(SMBResponseException):
                    answer()
            if link.alive:
                with suppress(SMBResponseException):
                    self._await_flush(link)
            if self._handle and link.alive:
                close(link, self._handle)
        self._handle = b""
        self._under_way.clear()

    def _remove(self) -> None:
        def work(link: Link) -> None:
            if self._ours:
                remove_at_last(link, self._temporary)
            with suppress(SMBResponseException):  # in use by somebody, or gone: then those above it are as well
                for folder in reversed(self._made):
                    remove(link, folder, FOLDER)

        with translated(self._ref, ref=self._ref):
            link, _ = self._links.begin(work, Hold())
        self._links.give(link)
        self._ours = False
        self._made.clear()

    @contextmanager
    def _working(self, hold: Hold) -> Iterator[Link]:
        """The connection, and errors in our terms. A lost one is closed."""
        link = self._link
        if link is None or not link.alive:
            raise Unavailable(f"{self._ref} cannot be written: the connection broke", ref=self._ref)
        try:
            with translated(self._ref, ref=self._ref), hold.on(link):
                try:
                    yield link
                except Exception as error:
                    if is_lost(error):
                        link.close()
                    raise
        except NoSpace as error:
            raise self._full(link) from error

    def _full(self, link: Link) -> NoSpace:
        room = 0
        with suppress(SMBException, OSError, Lost):
            room = self._room(link)
        return no_space(self._ref, needed=max(self._size or 0, self._written), available=room, ref=self._ref)
