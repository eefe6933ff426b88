"""Reading a file of a share: at random, by many, over broken connections. The blocking half is `SmbFile`."""

from __future__ import annotations

import struct
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from smbprotocol.exceptions import SMBException
from smbprotocol.open import SMB2ReadRequest

from stores.backends.directory import expect_version
from stores.backends.smb_calls import FILE, OPEN, READ, STABLE, close, create, look
from stores.backends.smb_errors import Lost, is_lost, status_of, translated
from stores.backends.smb_link import Link
from stores.backends.smb_links import Hold, Links
from stores.contract import Ahead, BlockingCalls, ObjectInfo, RangeReader
from stores.errors import IntegrityError, Unavailable

_END_OF_FILE = 0xC0000011
_DATA_OFFSET = 80  # header and the fixed part of an answer, where servers put the data ([MS-SMB2] 2.2.20)
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0


class SmbFile:
    """One file, open while its version is the expected one. Several threads may read. `close` is up to the owner."""

    def __init__(self, links: Links, info: ObjectInfo, path: str, *, attempts: int) -> None:
        self.info = info
        self._links = links
        self._path = path
        self._attempts = attempts
        self._opening = threading.Lock()
        self._link: Link | None = None
        self._handle = b""

    def open(self, hold: Hold) -> None:
        """Into this object, so that a handle cannot get lost on its way to a caller who was cancelled."""
        with translated(self.info.ref, ref=self.info.ref):
            self._current(hold)

    def close(self) -> None:
        """Idempotent."""
        with self._opening:
            if self._link is None:
                return
            with suppress(SMBException, OSError, Lost):
                close(self._link, self._handle)
            self._links.give(self._link)
            self._link = None

    def read_into(self, offset: int, buffer: memoryview, hold: Hold) -> None:
        """Fills `buffer`. Where the connection breaks, goes on with another, `attempts` times in all."""
        size = self.info.size or 0
        if offset < 0 or offset + len(buffer) > size:
            raise self._past_end(size, offset + len(buffer))
        failures = 0
        with translated(self.info.ref, ref=self.info.ref):
            while True:
                link: Link | None = None
                try:
                    link, handle = self._current(hold)
                    with hold.on(link):
                        self._read(link, handle, offset, buffer)
                    return
                except Exception as error:
                    failures += 1
                    if not (is_lost(error) or isinstance(error, Unavailable)) or hold.stopped:
                        raise
                    self._drop(link)
                    if failures >= self._attempts:
                        raise
                hold.pause(min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(failures, 10)))

    def _current(self, hold: Hold) -> tuple[Link, bytes]:
        with self._opening:
            if self._link is None:
                self._link, (self._handle, self.info) = self._links.begin(self._open_on, hold)
            return self._link, self._handle

    def _open_on(self, link: Link) -> tuple[bytes, ObjectInfo]:
        handle = create(link, self._path, READ, OPEN, FILE, STABLE)
        try:
            found = look(link, handle).info(self.info.ref)
            expect_version(self.info, found)
        except BaseException:
            with suppress(SMBException, OSError, Lost):
                close(link, handle)
            raise
        return handle, found

    def _drop(self, link: Link | None) -> None:
        """That connection is of no use any more; another reader may have noticed already."""
        with self._opening:
            if link is not None and link is self._link:
                link.close()
                self._link = None

    def _read(self, link: Link, handle: bytes, offset: int, buffer: memoryview) -> None:
        under_way: deque[tuple[Any, memoryview]] = deque()
        at, short = 0, False
        try:
            while at < len(buffer) or under_way:
                if at < len(buffer) and len(under_way) < link.width:
                    view = buffer[at : at + link.piece]
                    request = _request(handle, offset + at, len(view))
                    under_way.append((link.send(request, payload=len(view)), view))
                    at += len(view)
                else:
                    short |= not _received(link, *under_way.popleft())
        finally:
            for sent, _ in under_way:
                with suppress(SMBException, OSError, Lost):
                    link.receive(sent)
        # Nobody may write meanwhile; but a server's own processes may, where it is a Samba.
        expect_version(self.info, look(link, handle).info(self.info.ref))
        if short:
            raise self._past_end(self.info.size or 0, offset + len(buffer))

    def _past_end(self, size: int, needed: int) -> IntegrityError:
        return IntegrityError(
            f"{self.info.ref} ends at byte {size}, and bytes up to {needed} were asked for",
            ref=self.info.ref,
            size=size,
            needed=needed,
        )


class SmbReader(RangeReader):
    def __init__(self, file: SmbFile, links: Links) -> None:
        self.info = file.info
        self._file = file
        self._links = links

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        await self._links.in_thread(partial(self._file.read_into, offset, buffer))

    async def read_each(
        self,
        take: Callable[[], tuple[int, memoryview] | None],
        put: Callable[[int, memoryview], None],
        threads: BlockingCalls,
        *,
        ahead: Ahead = lambda: (),
    ) -> None:
        hold = Hold()

        def read_all() -> None:
            while not hold.stopped and (wanted := take()) is not None:
                self._file.read_into(*wanted, hold)
                put(*wanted)

        await threads.run(read_all, abort=hold.stop)


def _request(handle: bytes, offset: int, length: int) -> Any:
    request = SMB2ReadRequest()
    request["length"] = length
    request["offset"] = offset
    request["file_id"] = handle
    request["padding"] = bytes([_DATA_OFFSET])
    return request


def _received(link: Link, request: Any, view: memoryview) -> bool:
    """Whether all of `view` came."""
    try:
        body = link.receive(request)
    except SMBException as error:
        if status_of(error) == _END_OF_FILE:
            return False
        raise
    start, length = struct.unpack_from("<BxI", body, 2)
    data = memoryview(body)[start - 64 : start - 64 + length]
    view[: len(data)] = data
    return len(data) == len(view)
