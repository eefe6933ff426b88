"""A store that is one directory: local, or a share that the host has mounted.

Objects are regular files. An object that is being written is a file beside its later name, called
`.<name>.<hash of the writer>.partial`; such names are never listed, read or deleted as objects.

The path of a `LocalPath` is opened by others, by name: the confinement of `stores.paths` holds for it as long as only
trusted users can write into the directory. The other presentations hold the file open and need no such trust.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import ClassVar, ParamSpec, Protocol, TypeVar

from stores.backends.directory import Directory, OpenedFile
from stores.backends.draft import Draft
from stores.backends.filesystem_upload import FileUpload
from stores.backends.folders import DraftStream, Infos, walk
from stores.contract import (
    Ahead,
    BlockingCalls,
    DataStore,
    Extent,
    Kind,
    LocalPath,
    ObjectInfo,
    PendingUpload,
    PendingWrite,
    Presentation,
    RangeReader,
    Usage,
)
from stores.paths import check_prefix, check_ref
from stores.streams import presented
from stores.transfer.engine import TransferEngine
from stores.transfer.outgoing import Share
from stores.uninterrupted import uninterrupted

P = ParamSpec("P")
T = TypeVar("T")


class Calls(Protocol):
    """Makes blocking calls in threads: the engine, or what leaves behind those that hang."""

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T: ...


class FilesystemStore(DataStore):
    """Files below `root`, which must lie in or below one of `allowed` once every symbolic link is resolved.

    `mounted`: refuse to work while nothing is mounted at `root`. `made`: make it where it is missing. `file_mode`: permissions
    of written files. `calls`: for those that look, list and remove. Those on a file that is open are the engine's, which never
    leaves one behind: a descriptor that a hanging call still uses must not get another meaning.
    """

    writes = frozenset({Kind.LOCAL_PATH, Kind.BYTE_STREAM, Kind.UPLOAD})

    def __init__(
        self,
        root: Path,
        engine: TransferEngine,
        *,
        id: str,  # noqa: A002 - the contract's word
        allowed: Sequence[Path],
        mounted: bool = False,
        made: bool = False,
        file_mode: int = 0o600,
        calls: Calls | None = None,
    ) -> None:
        self.id = id
        self._directory = Directory(root, allowed=allowed, mounted=mounted, made=made)
        self._engine = engine
        self._calls: Calls = calls or engine
        self._file_mode = file_mode

    def offers(self, info: ObjectInfo | None = None) -> frozenset[Kind]:
        return frozenset({Kind.LOCAL_PATH, Kind.RANGE_READER, Kind.BYTE_STREAM})

    async def stat(self, ref: str) -> ObjectInfo:
        return await self._calls.run(self._directory.stat, ref)

    @asynccontextmanager
    async def present(self, info: ObjectInfo, kind: Kind) -> AsyncIterator[Presentation]:
        check_ref(info.ref)
        if kind not in self.offers(info):
            raise self._unsupported(f"reading as {kind}")
        if kind is Kind.LOCAL_PATH:
            path = await self._calls.run(self._directory.path_of, info)
            yield LocalPath(path, info)
            return
        opened = OpenedFile(self._directory, info)
        try:
            await self._engine.run(opened.open)
            reader = _Reader(opened, self._engine)
            if kind is Kind.RANGE_READER:
                yield reader
            else:
                async with presented(self._engine.stream(reader)) as stream:
                    yield stream
        finally:
            opened.close()

    @asynccontextmanager
    async def write(
        self, ref: str, kind: Kind, *, token: str, size: int | None = None, replace: bool = False
    ) -> AsyncIterator[PendingWrite]:
        check_ref(ref)
        if kind not in self.writes or kind is Kind.UPLOAD:
            raise self._unsupported(f"writing as {kind}")
        draft = Draft(self._directory, ref, token=token, size=size, replace=replace, file_mode=self._file_mode)
        streaming = kind is Kind.BYTE_STREAM
        try:
            await self._engine.run(draft.create, room=streaming)
            if streaming:
                with closing(Share(self._engine.outgoing)) as memory:
                    yield DraftStream(
                        lambda data: self._engine.run(draft.write, data),
                        partial(self._engine.run, draft.publish),
                        memory,
                    )
            else:
                yield _PendingFile(draft, self._engine)
        finally:
            await uninterrupted(self._engine.run(draft.close))

    @asynccontextmanager
    async def upload(
        self, ref: str, source: Path, *, token: str, replace: bool = False
    ) -> AsyncIterator[PendingUpload]:
        """The unfinished file is the one that a `write` with this token would have."""
        check_ref(ref)
        upload = FileUpload(
            self._directory, self._engine, ref, source, token=token, replace=replace, file_mode=self._file_mode
        )
        try:
            await upload.open()
            yield upload
        finally:
            await uninterrupted(upload.close())

    async def discard(self, ref: str, *, token: str) -> None:
        await self._calls.run(self._directory.remove_unfinished, ref, token)

    async def delete(self, ref: str) -> None:
        check_ref(ref)
        await self._calls.run(self._directory.remove, ref)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        async def entries(folder: str) -> Infos:
            return await self._calls.run(self._directory.entries, folder.split("/") if folder else [])

        async for info in walk(check_prefix(prefix), entries, self.stat):
            yield info

    async def usage(self) -> Usage:
        return await self._calls.run(self._directory.usage)


class _Reader(RangeReader):
    def __init__(self, opened: OpenedFile, engine: TransferEngine) -> None:
        self.info = opened.info
        self._opened = opened
        self._engine = engine

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        await self._engine.run(self._opened.read_into, offset, buffer)

    async def read_each(
        self,
        take: Callable[[], tuple[int, memoryview] | None],
        put: Callable[[int, memoryview], None],
        threads: BlockingCalls,
        *,
        ahead: Ahead = lambda: (),
    ) -> None:
        stopped = threading.Event()
        await threads.run(partial(self._opened.read_each, take, put, stopped), abort=stopped.set)

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        return await self._engine.run(self._opened.extents, offset, length)


class _PendingFile:
    kind: ClassVar[Kind] = Kind.LOCAL_PATH

    def __init__(self, draft: Draft, engine: TransferEngine) -> None:
        self.path = draft.path
        self._draft = draft
        self._engine = engine

    async def commit(self) -> ObjectInfo:
        return await self._engine.run(self._draft.publish)
