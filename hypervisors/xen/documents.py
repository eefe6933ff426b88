"""Documents about images in the `other_config` of their VDIs: see `marks`."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from hypervisors.documents import About, Documents
from hypervisors.xen.finding import Finder
from hypervisors.xen.marks import OF, OURS, Disk, about_documents, all_writing, as_bytes, as_text, document_key
from hypervisors.xen.pending import owners
from hypervisors.xen.repository import Repository
from stores.contract import KiB
from stores.errors import AlreadyExists, IntegrityError, NotFound, StorageError, TooLarge
from stores.uninterrupted import uninterrupted

_log = structlog.get_logger(__name__)

_LIMIT = 64 * KiB
"""Bytes of one document; a call to XAPI may have 300 KiB."""


class VdiDocuments(Documents):
    """They live and die with their image, and go over to what replaces it. While there is no image of that name, those of the
    one that is being made are meant."""

    def __init__(self, finder: Finder) -> None:
        self._finder = finder

    async def read(self, about: About) -> bytes | None:
        home = await self._home(await self._finder.found(), about.image)
        versions = about_documents(home).get(about.parts) if home is not None else None
        if versions is None:
            return None
        try:
            return as_bytes(versions[max(versions)])
        except ValueError as error:
            raise IntegrityError(f"the {about} is damaged: {error}", ref=about.image) from error

    async def put(self, about: About, content: bytes, *, token: str, replace: bool = False) -> None:
        """`NotFound` where there is neither that image nor a disk that the same command makes for it."""
        value = as_text(content)
        if len(value) > _LIMIT:
            raise TooLarge(f"the {about} is too long", ref=about.image, limit=_LIMIT, seen=len(value))
        await uninterrupted(self._put(await self._finder.found(), about, value, token, replace=replace))

    async def _put(self, sr: Repository, about: About, value: str, token: str, *, replace: bool) -> None:
        home = await self._home(sr, about.image, token=token)
        if home is None:
            raise NotFound(f"there is no disk {about.image} in SR {sr.name} to keep the {about} with", ref=about.image)
        if not home.own:
            await _adopt(sr, home)
        versions = about_documents(home).get(about.parts, {})
        number = max(versions, default=0) + 1
        if versions and not replace:
            raise _taken(about)
        with sr.telling(about.image):
            if not await sr.add_key("VDI", home.handle, document_key(about.parts, number), value):
                raise _taken(about)
        try:
            await sr.remove_keys("VDI", home.handle, [document_key(about.parts, old) for old in sorted(versions)])
        except StorageError as problem:  # they count no more, and go with the next replacement
            _log.warning("replaced document left behind", about=str(about), error=problem.message)

    async def remove(self, about: About) -> None:
        await uninterrupted(self._remove(about, keep=0))

    async def discard(self, about: About, *, token: str) -> None:
        """What a replacement had still to remove."""
        await uninterrupted(self._remove(about, keep=1))

    async def _remove(self, about: About, *, keep: int) -> None:
        """The oldest version first: else it would count again."""
        sr = await self._finder.found()
        home = await self._home(sr, about.image)
        if home is None:
            return
        versions = sorted(about_documents(home).get(about.parts, {}))
        doomed = versions[: len(versions) - keep]
        try:
            with sr.telling(about.image):
                await sr.remove_keys("VDI", home.handle, [document_key(about.parts, old) for old in doomed])
        except NotFound:
            return  # with its disk

    async def names(self, folder: About) -> Sequence[str]:
        home = await self._home(await self._finder.found(), folder.image)
        depth = len(folder.parts)
        found = about_documents(home) if home is not None else {}
        return sorted({parts[depth] for parts in found if parts[:depth] == folder.parts and len(parts) > depth})

    async def _home(self, sr: Repository, image: str, *, token: str | None = None) -> Disk | None:
        """The VDI that has the name, or else is to have it. `token`: and is made by that command."""
        ready = await owners(sr, image)
        if ready:
            return ready[-1]
        writing = all_writing(image, await sr.named(image))
        for disk in writing:
            if disk.own and (token is None or (disk.image is not None and disk.image.token == token)):
                return disk
        return None


async def _adopt(sr: Repository, disk: Disk) -> None:
    """A disk that somebody else made keeps documents from now on. If it is a copy of one of ours, those that came with it are
    about the other one."""
    with sr.telling(disk.name):
        copied = [key for key in disk.config if key.startswith(OURS) and key != OF]
        await sr.remove_keys("VDI", disk.handle, [*copied, OF])
        await sr.add_key("VDI", disk.handle, OF, disk.uuid)


def _taken(about: About) -> AlreadyExists:
    return AlreadyExists(f"there is a {about} already", ref=about.image)
