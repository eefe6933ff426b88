"""Pools of Ceph with RBD images: raw disks that qemu opens by itself, and that share blocks with snapshots and clones.

Images of others in the same pool are seen by their names, and used like ours.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from urllib.parse import unquote

from stores.backends.rbd_cluster import Cluster
from stores.backends.rbd_image import UNFINISHED, PendingRbdImage, RbdImage, name_of, unfinished_name
from stores.backends.rbd_notes import HIDDEN, NoteReader, Notes, PendingNote, is_note
from stores.backends.rbd_place import RbdLogin, login_for, place_of_pool
from stores.contract import (
    DataStore,
    Kind,
    NetworkDisk,
    ObjectInfo,
    PendingWrite,
    Presentation,
    Usage,
)
from stores.errors import ObjectChanged, Unavailable
from stores.paths import check_prefix, check_ref, in_listing
from stores.settings import StoreSettings
from stores.to import PrimaryDataStoreTO
from stores.tools.process import ToolRunner
from stores.transfer.engine import TransferEngine
from stores.uninterrupted import uninterrupted


class RbdStore(DataStore):
    """Its versions are ids of images: a guest that writes into one does not change them."""

    writes = frozenset({Kind.RBD_IMAGE, Kind.BYTE_STREAM})
    """Streams only for small objects below `.storage-agent/`."""

    def __init__(self, to: PrimaryDataStoreTO, settings: StoreSettings, engine: TransferEngine) -> None:
        place = place_of_pool(to)
        self.id = f"pool:{to.uuid}"
        self._cluster = Cluster(
            place,
            lambda: login_for(place, to.uuid, settings.rbd_keyrings),
            engine,
            ToolRunner(),
            settings.runtime_dir,
            connect_s=settings.connect_timeout,
            silent_s=settings.read_timeout,
        )
        self._notes = Notes(self._cluster)

    def offers(self, info: ObjectInfo | None = None) -> frozenset[Kind]:
        return frozenset({Kind.RANGE_READER if info is not None and is_note(info.ref) else Kind.RBD_IMAGE})

    def network(self, ref: str) -> NetworkDisk:
        check_ref(ref)
        return NetworkDisk("rbd", f"{self._cluster.pool}/{name_of(ref)}", self._cluster.hosts)

    async def stat(self, ref: str) -> ObjectInfo:
        check_ref(ref)
        if is_note(ref):
            return ObjectInfo(ref, len(await self._notes.read(ref)))
        found = await self._cluster.call("info", image=name_of(ref), ref=ref)
        return ObjectInfo(ref, found["size"], version=found["id"])

    @asynccontextmanager
    async def present(self, info: ObjectInfo, kind: Kind) -> AsyncIterator[Presentation]:
        if kind not in self.offers(info):
            raise self._unsupported(f"reading {info.ref} as {kind}")
        if is_note(info.ref):
            content = await self._notes.read(info.ref)
            yield NoteReader(ObjectInfo(info.ref, len(content)), content)
            return
        found = await self.stat(info.ref)
        if info.version not in (None, found.version):
            raise ObjectChanged(f"{info.ref} is another image than it was; start again", ref=info.ref)
        yield RbdImage(self._cluster, await self._cluster.entered(), name_of(info.ref), found).presented()

    def write(
        self, ref: str, kind: Kind, *, token: str, size: int | None = None, replace: bool = False
    ) -> AbstractAsyncContextManager[PendingWrite]:
        check_ref(ref)
        if kind is Kind.RBD_IMAGE:
            return self._image(ref, token=token, replace=replace)
        if kind is Kind.BYTE_STREAM and is_note(ref):
            return self._note(ref, replace=replace)
        raise self._unsupported(f"writing {ref} as {kind}")

    async def discard(self, ref: str, *, token: str) -> None:
        if not is_note(ref) or ref.startswith(_PROBES):
            await self._named(ref, unfinished_name(ref, token), await self._cluster.entered()).abandon()

    async def delete(self, ref: str) -> None:
        """Images that share blocks with its snapshots get them for themselves. `Unavailable` while a guest has it."""
        check_ref(ref)
        if is_note(ref):
            await uninterrupted(self._notes.remove(ref))
        else:
            await self._named(ref, name_of(ref), await self._cluster.entered()).remove()

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        check_prefix(prefix)
        if prefix.startswith(HIDDEN):
            for ref in await self._notes.below(prefix):
                yield ObjectInfo(ref, None)
            return
        found: dict[str, int] = await self._cluster.call("sizes", ref=prefix or self._cluster.pool)
        sizes = {unquote(name): size for name, size in found.items()}
        for ref in sorted(sizes):
            if not ref.startswith(UNFINISHED) and in_listing(ref, prefix):
                yield ObjectInfo(ref, sizes[ref])

    async def usage(self) -> Usage:
        """As the cluster counts it: every copy of what is there, and what it would take more."""
        found = await self._cluster.call("statistics", ref=self._cluster.pool)
        if found is None:
            raise Unavailable(
                f"the cluster has no statistics of pool {self._cluster.pool}: it needs a manager (ceph-mgr) that runs",
                pool=self._cluster.pool,
            )
        used = int(found["stored"])
        return Usage(used=used, capacity=used + int(found["max_avail"]))

    async def aclose(self) -> None:
        await self._cluster.aclose()

    @asynccontextmanager
    async def _image(self, ref: str, *, token: str, replace: bool) -> AsyncIterator[PendingWrite]:
        pending = PendingRbdImage(self._cluster, await self._cluster.entered(), ref, token=token, replace=replace)
        try:
            yield pending
        finally:
            await uninterrupted(pending.leave())

    @asynccontextmanager
    async def _note(self, ref: str, *, replace: bool) -> AsyncIterator[PendingWrite]:
        yield PendingNote(self._notes, ref, replace=replace)

    def _named(self, ref: str, name: str, login: RbdLogin) -> RbdImage:
        return RbdImage(self._cluster, login, name, ObjectInfo(ref, None))


_PROBES = f"{HIDDEN}probe/"
