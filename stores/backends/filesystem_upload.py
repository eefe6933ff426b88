"""Sending a local file into a directory, in parts that outlive the process: the unfinished file keeps what was written.

What an earlier process left there is compared with the source byte by byte before it counts; after a crash of the host it
may be anything.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import ClassVar

from stores.backends.directory import Directory, OpenedFile
from stores.backends.draft import Draft
from stores.contract import Kind, MiB, ObjectInfo
from stores.errors import IntegrityError, NotFound
from stores.transfer.engine import TransferEngine
from stores.transfer.parts import Parts
from stores.transfer.placed import PlacedFile
from stores.transfer.source import SourceFile
from stores.uninterrupted import uninterrupted

PART = 8 * MiB


class FileUpload:
    """A `PendingUpload`. Holds one buffer of the engine for every part that is under way."""

    kind: ClassVar[Kind] = Kind.UPLOAD
    parallel = 4

    def __init__(
        self,
        directory: Directory,
        engine: TransferEngine,
        ref: str,
        source: Path,
        *,
        token: str,
        replace: bool,
        file_mode: int,
    ) -> None:
        self._directory = directory
        self._engine = engine
        self._threads = engine.disk.of(self)
        self._ref = ref
        self._token = token
        self._replace = replace
        self._file_mode = file_mode
        self._source = SourceFile(source)
        self._cut = Parts(0, PART)
        self.parts = self._cut.count
        self._draft: Draft | None = None
        self._file: PlacedFile | None = None
        self._there: set[int] = set()  # parts that are known to be right
        self._stored: ObjectInfo | None = None

    def length(self, number: int) -> int:
        return self._cut.length(number)

    async def open(self) -> None:
        """Finds what is there already, or begins. `AlreadyExists` where another object has the name, unless it is replaced."""
        await self._engine.run(self._source.open)
        self._cut = Parts(self._source.size, PART)
        self.parts = self._cut.count
        draft = self._draft = Draft(
            self._directory,
            self._ref,
            token=self._token,
            size=self._source.size,
            replace=self._replace,
            file_mode=self._file_mode,
            kept=True,
        )
        if await self._is_stored():
            self._stored = await self._engine.run(draft.publish_again)
            return
        await self._engine.run(draft.create, room=True)
        await self._engine.run(draft.resize)
        self._file = PlacedFile(draft.path, kept=True)
        await self._engine.run(self._file.open, self._source.size)

    async def send(self, number: int) -> bool:
        if self._stored is not None or (self._found(number) and await self._is_there(number)):
            return False
        assert self._file is not None
        await self._moved(partial(self._copy, self._file, *self._cut.range(number)))
        self._there.add(number)
        return True

    async def commit(self) -> ObjectInfo:
        if self._stored is None:
            assert self._draft is not None
            for number in range(1, self.parts + 1):
                if number not in self._there and not await self._is_there(number):
                    raise IntegrityError(
                        f"{self._ref}: part {number} of {self.parts} was not sent: send it, and commit again",
                        ref=self._ref,
                    )
            self._stored = await self._engine.run(self._draft.publish)
        else:
            await self._engine.run(self._directory.remove_unfinished, self._ref, self._token)
        return self._stored

    async def close(self) -> None:
        """Gives back the descriptors; the unfinished file stays."""
        files = ExitStack()  # all of them, also where one fails
        for file in (self._source, self._draft, self._file):
            if file is not None:
                files.callback(file.close)
        await self._engine.run(files.close)

    def _found(self, number: int) -> bool:
        return number in self._there or (self._draft is not None and self._draft.found)

    async def _is_there(self, number: int) -> bool:
        assert self._file is not None
        if number in self._there:
            return True
        same = await self._moved(partial(self._same, self._file.read, *self._cut.range(number)))
        if same:
            self._there.add(number)
        return same

    async def _is_stored(self) -> bool:
        """Whether the object has the content of the source: then an earlier commit was carried out."""
        try:
            info = await self._engine.run(self._directory.stat, self._ref)
        except NotFound:
            return False
        if info.size != self._source.size:
            return False
        opened = OpenedFile(self._directory, info)
        try:
            await self._engine.run(opened.open)
            return await self._moved(partial(self._same, opened.read_into, 0, self._source.size))
        finally:
            await uninterrupted(self._engine.run(opened.close))

    async def _moved(self, work: partial[bool]) -> bool:
        """`work` in a thread of the disk's, with a buffer; it is asked to stop when this is cancelled."""
        stopped = threading.Event()
        buffer = await self._engine.buffers.acquire(self)
        try:
            return await self._threads.run(partial(work, buffer=buffer, stopped=stopped), abort=stopped.set)
        finally:
            self._engine.buffers.release(self, buffer)

    def _copy(self, file: PlacedFile, start: int, end: int, *, buffer: memoryview, stopped: threading.Event) -> bool:
        at = start
        for first, last in self._source.data(start, end):
            file.zero(at, first - at)
            for offset in range(first, last, len(buffer)):
                if stopped.is_set():
                    return False
                view = buffer[: min(len(buffer), last - offset)]
                self._source.read(offset, view)
                file.write(offset, view)
            at = last
        file.zero(at, end - at)
        return True

    def _same(
        self,
        read: Callable[[int, memoryview], None],
        start: int,
        end: int,
        *,
        buffer: memoryview,
        stopped: threading.Event,
    ) -> bool:
        half = len(buffer) // 2
        for offset in range(start, end, half):
            count = min(half, end - offset)
            ours, theirs = buffer[:count], buffer[half : half + count]
            self._source.read(offset, ours)
            read(offset, theirs)
            # Copied, since bytes compare ten times as fast as views.
            if stopped.is_set() or bytes(ours) != bytes(theirs):
                return False
        return True
