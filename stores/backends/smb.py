"""A store that is a folder of an SMB share, spoken to by the agent itself: nothing is mounted.

Objects are files. What is being written is a file beside its later name, as in a directory store, and never listed, read or
deleted as an object. Names follow the rules of Windows (`smb_names`), and capitals do not matter: `a` and `A` are one object.
Files are never made sparse, compressed or encrypted: Hyper-V refuses disks that are.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from functools import partial

from smbprotocol.exceptions import SMBResponseException

from stores.backends.directory import unfinished_name
from stores.backends.folders import DraftCopy, DraftStream, Infos, in_order, walk
from stores.backends.smb_calls import Status, entries, flush_folder, stat, usage
from stores.backends.smb_draft import SmbDraft
from stores.backends.smb_errors import MISSING, NOT_A_DIRECTORY, status_of
from stores.backends.smb_gone import remove_at_last
from stores.backends.smb_link import Link
from stores.backends.smb_links import Links
from stores.backends.smb_names import check_name, is_name, wire_path
from stores.backends.smb_place import SmbPlace
from stores.backends.smb_reader import SmbFile, SmbReader
from stores.contract import DataStore, Kind, ObjectInfo, PendingCopy, PendingWrite, Presentation, Usage
from stores.errors import NotFound
from stores.paths import check_prefix
from stores.settings import StoreSettings
from stores.streams import presented
from stores.transfer.engine import TransferEngine
from stores.transfer.outgoing import Share
from stores.uninterrupted import uninterrupted


class SmbStore(DataStore):
    """Reads go on over broken connections; a write whose connection breaks fails as a whole, `Unavailable`."""

    writes = frozenset({Kind.BYTE_STREAM})

    def __init__(self, place: SmbPlace, settings: StoreSettings, engine: TransferEngine, *, id: str) -> None:  # noqa: A002
        self.id = id
        self._engine = engine
        self._attempts = settings.attempts
        self._base = place.folder
        self._links = Links(place, settings, engine)

    def offers(self, info: ObjectInfo | None = None) -> frozenset[Kind]:
        return frozenset({Kind.RANGE_READER, Kind.BYTE_STREAM})

    async def stat(self, ref: str) -> ObjectInfo:
        status = await self._links.run(partial(stat, path=self._path(ref)), ref)
        if status.is_dir:
            raise NotFound(f"{ref} is a directory, not an object", ref=ref)
        return status.info(ref)

    @asynccontextmanager
    async def present(self, info: ObjectInfo, kind: Kind) -> AsyncIterator[Presentation]:
        path = self._path(info.ref)
        if kind not in self.offers(info):
            raise self._unsupported(f"reading as {kind}")
        file = SmbFile(self._links, info, path, attempts=self._attempts)
        try:
            await self._links.in_thread(file.open)
            reader = SmbReader(file, self._links)
            if kind is Kind.RANGE_READER:
                yield reader
            else:
                async with presented(self._engine.stream(reader)) as stream:
                    yield stream
        finally:
            await uninterrupted(self._links.in_thread(lambda hold: file.close()))

    @asynccontextmanager
    async def write(
        self, ref: str, kind: Kind, *, token: str, size: int | None = None, replace: bool = False
    ) -> AsyncIterator[PendingWrite]:
        check_name(ref)
        if kind not in self.writes:
            raise self._unsupported(f"writing as {kind}")
        async with self._draft(ref, token=token, size=size, replace=replace) as draft:
            with closing(Share(self._engine.outgoing)) as memory:
                yield DraftStream(
                    lambda data: self._links.in_thread(partial(draft.write, data.cast("B"))),
                    partial(self._links.in_thread, draft.publish),
                    memory,
                )

    @asynccontextmanager
    async def copy(
        self, source: ObjectInfo, ref: str, *, token: str, replace: bool = False
    ) -> AsyncIterator[PendingCopy]:
        """See the contract. By the server itself, inside this share."""
        path = self._path(source.ref)
        check_name(ref)
        async with self._draft(ref, token=token, size=source.size, replace=replace) as draft:
            await self._links.in_thread(partial(draft.copy, source, path))
            yield DraftCopy(partial(self._links.in_thread, draft.publish))

    async def discard(self, ref: str, *, token: str) -> None:
        *folder, name = check_name(ref)
        path = wire_path(*self._base, *folder, unfinished_name(ref, name, token))
        await self._links.run(partial(remove_at_last, path=path), ref)

    async def delete(self, ref: str) -> None:
        *folder, _ = check_name(ref)

        def work(link: Link) -> None:
            if remove_at_last(link, self._path(ref)):
                flush_folder(link, wire_path(*self._base, *folder))

        await self._links.run(work, ref)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        async for info in walk(check_prefix(prefix), self._entries, self.stat):
            yield info

    async def usage(self) -> Usage:
        return await self._links.run(partial(usage, path=wire_path(*self._base)), self.id)

    async def aclose(self) -> None:
        await self._engine.run(self._links.close)

    def _path(self, ref: str) -> str:
        return wire_path(*self._base, *check_name(ref))

    async def _entries(self, folder: str) -> Infos:
        """What is in a folder, in the order of the refs of all objects in and below it; none where there is no folder."""
        if folder and not is_name(folder):
            return []
        path = wire_path(*self._base, *folder.split("/")) if folder else wire_path(*self._base)

        def work(link: Link) -> dict[str, Status]:
            try:
                return entries(link, path)
            except SMBResponseException as error:
                if folder and status_of(error) in MISSING | {NOT_A_DIRECTORY}:
                    return {}
                raise

        listed = await self._links.run(work, folder or self.id)
        refs = {f"{folder}/{name}" if folder else name: status for name, status in listed.items()}
        return in_order(status.info(ref) for ref, status in refs.items() if is_name(ref))

    @asynccontextmanager
    async def _draft(self, ref: str, *, token: str, size: int | None, replace: bool) -> AsyncIterator[SmbDraft]:
        draft = SmbDraft(self._links, ref, token=token, size=size, replace=replace)
        try:
            await self._links.in_thread(draft.create)
            yield draft
        finally:
            await uninterrupted(self._links.in_thread(lambda hold: draft.close()))
