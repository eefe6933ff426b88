"""From a `DataStoreTO` to a store, and to an object of it in a form that somebody accepts.

The only module of `stores` that names concrete stores. Imports of backends wait until their first use, so that a start does
not pay for the libraries of stores that nobody asked for.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Hashable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import unquote, urlsplit

from stores.contract import DataStore, Kind, LocalPath, ObjectInfo, PendingWrite, Presentation, Progress, RangeReader
from stores.errors import CacheFailure, InvalidReference, PolicyRefused, RequirementNotMet, StoreUnsupported
from stores.locations import (
    ISCSI_POOLS,
    MOUNT_OPTIONS,
    MOUNTED_POOLS,
    RBD_POOLS,
    SMB_POOLS,
    export_name,
    identity_of,
    split_url,
)
from stores.mounts.export import split_options
from stores.negotiation import CacheUse, Negotiation, Reason, Via, negotiate
from stores.paths import check_ref
from stores.settings import StoreSettings
from stores.to import S3TO, DataStoreTO, ImageStoreTO, NfsTO, PrimaryDataStoreTO, SwiftTO
from stores.tools.process import ToolRunner
from stores.transfer.engine import TransferEngine
from stores.wrappers.mounted import MountedStore
from stores.wrappers.reporting import ReportingStore, StoreObserver
from stores.wrappers.retrying import RetryingStore

if TYPE_CHECKING:  # what they stand on is only loaded where it is needed
    from stores.backends.smb_place import SmbPlace
    from stores.cache.cache import Cache
    from stores.cache.proxy import CachingStore
    from stores.cache.writeback.queue import UploadQueue
    from stores.leftovers import Leftovers
    from stores.mounts.mount import Mount
    from stores.mounts.mounts import Mounts

__all__ = ["SUPPORTED", "CacheUse", "Durability", "Negotiation", "Reason", "Resolver", "Via", "negotiate"]

DIRECTORY_POOLS = ("Filesystem", "SharedMountPoint")
"""Pool types that are a directory of the host, by their path."""

_SHARED_GROUP = "CLVM"
LVM_POOLS = ("LVM", _SHARED_GROUP)
"""Pool types that are a volume group, by their path: of one host, or shared by hosts, which needs LVM's locks (lvmlockd(8))."""

BLOCK_POOLS = ("Block",)
"""Pool types that are a directory of devices, by their path. No type of CloudStack's."""

_PRIMARY = (*DIRECTORY_POOLS, *MOUNTED_POOLS, *SMB_POOLS, *RBD_POOLS, *LVM_POOLS, *ISCSI_POOLS, *BLOCK_POOLS)

SUPPORTED = (
    *(f"primary storage of type {pool}" for pool in _PRIMARY),
    "image stores with an http://, https:// or file:// URI",
    "S3",
    "Swift",
    "NFS exports, mounted by the host or by the agent",
    "SMB shares, as secondary storage with a cifs:// URL",
)
"""Of what `Resolver.store` can make a store."""


class Durability(StrEnum):
    """What a write has to be when it is committed."""

    STORED = "stored"  # the store has confirmed it
    STAGED = "staged"  # safe on this host, and uploaded until it is stored


class Resolver:
    """Stores by what commands say of them. One per process.

    `observer` is told of every call to every store. `cache` makes files of objects; closing it, before the resolver, is up to
    whoever made it. `mounts` makes NFS exports directories; without it they are mounted already.
    """

    def __init__(
        self,
        settings: StoreSettings,
        engine: TransferEngine,
        *,
        observer: StoreObserver | None = None,
        cache: Cache | None = None,
        mounts: Mounts | None = None,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._observer = observer
        self._cache = cache
        self._mounts = mounts
        self._uploads: UploadQueue | None = None
        self._leftovers: Leftovers | None = None
        self._stores: dict[Hashable, DataStore] = {}
        self._preferring: set[str] = set()  # ids of stores whose objects are worth caching

    def upload_through(self, queue: UploadQueue) -> None:
        """Writes that are to be staged go through `queue` from now on. It opens its stores by `store`."""
        self._uploads = queue

    def note_in(self, leftovers: Leftovers) -> None:
        """Writes that may leave something in image stores are noted in `leftovers` from now on."""
        self._leftovers = leftovers

    def noted(self, to: DataStoreTO, store: DataStore, ref: str, *, token: str) -> AbstractAsyncContextManager[object]:
        """Around a write to that store: what it leaves there when it fails, or when this process dies, is removed later."""
        return nullcontext() if self._leftovers is None else self._leftovers.noted(to, store, ref, token)

    def store(self, to: DataStoreTO) -> DataStore:
        """The store that `to` means: the same object for the same place and credentials, another one when any of these
        changes. Contacts nothing. `StoreUnsupported`, `InvalidReference` or `PolicyRefused` when there can be none.
        """
        store = self._store(to)
        if self._uploads is not None:
            self._uploads.named(to, store.id)
        if self._leftovers is not None:
            self._leftovers.named(to, store.id)
        return store

    def id_of(self, to: DataStoreTO) -> str:
        """The id of the store that `to` means, also where `to` comes from a journal, without its secrets: nobody takes them for
        those that the store knows us by. Raises as `store`."""
        return self._store(to).id

    async def stat(self, to: DataStoreTO, ref: str) -> ObjectInfo:
        return await self.store(to).stat(ref)

    def negotiate(
        self, store: DataStore, info: ObjectInfo | None, kinds: Sequence[Kind], *, cache: CacheUse | None = None
    ) -> Negotiation:
        """How `open` would present the object; with None, an object of that store in general. Contacts nothing."""
        offered = store.offers(info)
        ranges = Kind.RANGE_READER in offered if info is None else info.ranges
        return negotiate(store.id, offered, kinds, ranges=ranges, cache=self._use(store, cache))

    @asynccontextmanager
    async def open(
        self,
        store: DataStore,
        info: ObjectInfo,
        kinds: Sequence[Kind],
        *,
        cache: CacheUse | None = None,
        wait_s: float | None = None,
        progress: Progress | None = None,
    ) -> AsyncIterator[Presentation]:
        """The object in the first form that fits, until the context ends. `RequirementNotMet` before any byte moves.

        `info` is what a fresh `stat` said. `cache`: what it is for, where the configuration should not decide. `wait_s`: how
        long to wait for room in the cache at most; then `CacheExhausted` (`stores.cache.ladder`), unless the store itself has
        another form that fits. `progress` is told of what has to be fetched into the cache.
        """
        use = self._use(store, cache)
        outcome = self.negotiate(store, info, kinds, cache=use)
        if outcome.chosen is None:
            raise outcome.refusal()
        async with AsyncExitStack() as stack:
            if outcome.via is Via.CACHE:
                cached = self._cached(store, use, wait_s, progress)
                try:
                    presentation = await stack.enter_async_context(self._made(cached, info, outcome.chosen))
                except CacheFailure as error:
                    without = negotiate(store.id, outcome.offered, kinds, ranges=info.ranges)
                    if without.chosen is None:
                        raise
                    cached.bypassed(info, error)
                    presentation = await stack.enter_async_context(self._made(store, info, without.chosen))
            else:
                presentation = await stack.enter_async_context(self._made(store, info, outcome.chosen))
            yield presentation

    async def keep(
        self, store: DataStore, info: ObjectInfo, what: str, *, token: str, progress: Progress | None = None
    ) -> Path:
        """The object as a file of this host that stays until `let_go(what)`, over restarts of agent and host. Idempotent: what
        is kept as `what` already is given again. Waits for room and raises as `open`."""
        use = self._use(store, None)
        outcome = self.negotiate(store, info, (Kind.LOCAL_PATH,), cache=use)
        if outcome.chosen is None:
            raise outcome.refusal()
        if outcome.via is Via.CACHE and self._cache is not None:
            from stores.cache.keeping import Claim, keep

            wait_s = self._settings.cache.wait_s
            return await keep(self._cache, store, info, Claim.of(what, token), wait_s=wait_s, progress=progress)
        async with store.present(info, Kind.LOCAL_PATH) as presentation:
            return cast(LocalPath, presentation).path  # it lies in a directory of the operator's, who keeps it

    async def kept(self, what: str) -> Path | None:
        """The file of the cache that `keep` gave for `what`, until `let_go`. Needs no store. Raises `PoolSick` while that
        cannot be told."""
        if self._cache is None:
            return None
        from stores.cache.keeping import Claim, kept

        return await kept(self._cache, Claim.of(what))

    async def let_go(self, what: str, *, token: str | None = None) -> None:
        """`what` need not stay any more; with a token only if that command has kept it. Idempotent. Raises `PoolSick` while
        that cannot be done."""
        if self._cache is not None:
            from stores.cache.keeping import Claim, let_go

            await let_go(self._cache, Claim.of(what, token or ""), only_if_same=token is not None)

    def create(
        self,
        store: DataStore,
        ref: str,
        kinds: Sequence[Kind],
        *,
        token: str,
        size: int | None = None,
        replace: bool = False,
        durability: Durability = Durability.STORED,
        store_to: DataStoreTO | None = None,
        wait_s: float | None = None,
        stored_s: float | None = None,
        follows: str | None = None,
    ) -> AbstractAsyncContextManager[PendingWrite]:
        """`store.write` through the first of `kinds` that the store can be written through.

        Where there is none, but a file would do and the store takes uploads, and where the write is only to be `STAGED`: a file
        in the cache, to be filled with at most `size` bytes, which the upload queue brings to the store (`UploadQueue.staging`;
        ask `staged` before, whether that was done already). For that `store_to` is needed, by which the store is found again
        after a restart; where it is given, what an interrupted `store.write` leaves is removed as well (`noted`). `wait_s`: how
        long to wait for room. `STORED`: `commit` waits for the store, `stored_s` seconds at most (None: as long as it takes),
        then `UploadPending`. `STAGED`: the info that `commit` returns has the upload's id. `follows`: the upload that
        has to be stored before this one.

        `RequirementNotMet` before any byte moves when there is no way.
        """
        outcome = negotiate(store.id, store.writes, kinds, ranges=False)
        if durability is Durability.STORED and outcome.chosen is not None:
            write = store.write(ref, outcome.chosen, token=token, size=size, replace=replace)
            return write if store_to is None else self._noted_write(store_to, store, ref, token, write)
        queue = self._uploads
        if queue is None or store_to is None or Kind.UPLOAD not in store.writes or Kind.LOCAL_PATH not in kinds:
            raise outcome.refusal() if outcome.chosen is None else _not_staged(store.id, outcome)
        wait_s = self._settings.cache.wait_s if wait_s is None else wait_s
        if durability is Durability.STAGED:
            return queue.staging(
                store_to, store, ref, token=token, size=size, replace=replace, wait_s=wait_s, follows=follows
            )
        return queue.writing(
            store_to, store, ref, token=token, size=size, replace=replace, wait_s=wait_s, stored_s=stored_s
        )

    async def staged(
        self, store: DataStore, ref: str, *, token: str, durability: Durability, stored_s: float | None = None
    ) -> ObjectInfo | None:
        """What an earlier `create` with that token has staged, joined instead of written again; None: nothing. Answers and
        raises as `commit` would."""
        if self._uploads is None:
            return None
        found = await self._uploads.staged(store, ref, token=token)
        if found is None or found.upload is None or durability is Durability.STAGED:
            return found
        return await self._uploads.stored(found.upload, deadline_s=stored_s)

    async def require_not_uploading(self, store: DataStore, ref: str) -> None:
        """`UploadPending` while that object is staged and not stored yet, whoever has staged it; the error of that upload if it
        failed."""
        if self._uploads is None:
            return
        found = await self._uploads.uploading(store, ref)
        if found is not None:
            await self._uploads.stored(found.id, deadline_s=0)

    async def aclose(self) -> None:
        """Close every store that was handed out, also when one of them fails to. Idempotent."""
        async with AsyncExitStack() as stack:
            while self._stores:
                _, store = self._stores.popitem()
                stack.push_async_callback(store.aclose)

    def _store(self, to: DataStoreTO) -> DataStore:
        identity = identity_of(to)
        if identity not in self._stores:
            store = self._make(to)
            self._stores[identity] = ReportingStore(store, self._observer) if self._observer else store
            if to.storeType in self._settings.cache.prefer:
                self._preferring.add(store.id)
        return self._stores[identity]

    def _use(self, store: DataStore, asked: CacheUse | None) -> CacheUse | None:
        """What the cache is for with this store: None where there is no cache."""
        if self._cache is None:
            return None
        return asked or (CacheUse.PREFERRED if store.id in self._preferring else CacheUse.NEEDED)

    def _cached(
        self, store: DataStore, use: CacheUse | None, wait_s: float | None, progress: Progress | None
    ) -> CachingStore:
        from stores.cache.proxy import CachingStore

        assert self._cache is not None
        assert use is not None
        settings = self._settings.cache
        if wait_s is None:
            wait_s = settings.preferred_wait_s if use is CacheUse.PREFERRED else settings.wait_s
        return CachingStore(store, self._cache, use=use, wait_s=wait_s, progress=progress)

    @asynccontextmanager
    async def _made(self, store: DataStore, info: ObjectInfo, kind: Kind) -> AsyncIterator[Presentation]:
        """What the store offers, or by the bridge what can be made of its ranges."""
        if kind in store.offers(info):
            async with store.present(info, kind) as presentation:
                yield presentation
        else:
            async with store.present(info, Kind.RANGE_READER) as reader, self._bridge(reader) as export:
                yield export

    @asynccontextmanager
    async def _noted_write(
        self,
        to: DataStoreTO,
        store: DataStore,
        ref: str,
        token: str,
        write: AbstractAsyncContextManager[PendingWrite],
    ) -> AsyncIterator[PendingWrite]:
        async with self.noted(to, store, ref, token=token), write as pending:
            yield pending

    def _bridge(self, reader: Presentation) -> AbstractAsyncContextManager[Presentation]:
        from stores.bridge import serve

        # A folder of its own: the bridge wants one that nobody else may enter, and there are other sockets in runtime_dir.
        socket = self._settings.runtime_dir / "nbd" / f"{secrets.token_hex(6)}.sock"
        return serve(cast(RangeReader, reader), socket)

    def _make(self, to: DataStoreTO) -> DataStore:
        match to:
            case PrimaryDataStoreTO():
                return self._primary(to)
            case ImageStoreTO():
                return self._image(to)
            case S3TO():
                from stores.backends.s3 import S3Store

                return S3Store(to, self._settings, self._engine)
            case NfsTO():
                return self._nfs(to)
            case SwiftTO():
                from stores.backends.swift import SwiftStore

                return SwiftStore(to, self._settings, self._engine)

    def _primary(self, to: PrimaryDataStoreTO) -> DataStore:
        if len(check_ref(to.uuid)) != 1:
            raise InvalidReference("a pool's uuid is not a path", pool=to.uuid)
        if to.poolType in DIRECTORY_POOLS:
            if not to.path:
                raise InvalidReference(f"pool {to.uuid} of type {to.poolType} comes without a path", pool=to.uuid)
            return self._directory(Path(to.path), f"pool:{to.uuid}", allowed=self._settings.roots)
        if to.poolType in MOUNTED_POOLS:
            root = self._settings.mount_root
            mount = self._mount_of(to)
            return self._directory(root / to.uuid, f"pool:{to.uuid}", allowed=(root,), mounted=True, mount=mount)
        if to.poolType in SMB_POOLS:
            from stores.backends.smb_place import place_of_pool

            return self._smb(place_of_pool(to), f"pool:{to.uuid}")
        if to.poolType in RBD_POOLS:
            from stores.backends.rbd import RbdStore

            return RbdStore(to, self._settings, self._engine)
        if to.poolType in LVM_POOLS:
            return self._lvm(to)
        if to.poolType in ISCSI_POOLS:
            from stores.backends.iscsi import IscsiStore
            from stores.backends.iscsi_place import place_of

            place, timeout_s = place_of(to), self._settings.read_timeout
            return self._noted(IscsiStore(place, ToolRunner(), id=f"pool:{to.uuid}", timeout_s=timeout_s), to)
        if to.poolType in BLOCK_POOLS and to.path:
            from stores.backends.block import BlockStore

            root, allowed = Path(to.path), self._settings.roots
            return self._noted(BlockStore(root, self._engine, id=f"pool:{to.uuid}", allowed=allowed), to)
        raise _unsupported(f"primary storage of type {to.poolType}")

    def _noted(self, disks: DataStore, to: PrimaryDataStoreTO) -> DataStore:
        """With what is known of the disks kept on this host."""
        from stores.backends.filesystem import FilesystemStore
        from stores.wrappers.noted import NotedStore

        place = self._settings.notes_dir
        notes = FilesystemStore(place / to.uuid, self._engine, id=disks.id, allowed=[place], made=True)
        return NotedStore(disks, notes)

    def _lvm(self, to: PrimaryDataStoreTO) -> DataStore:
        from stores.backends.lvm import LvmStore
        from stores.backends.lvm_calls import Lvm
        from stores.backends.lvm_names import group_of
        from stores.backends.lvm_notes import LvmNotes
        from stores.wrappers.noted import NotedStore

        settings, shared, identity = self._settings.lvm, to.poolType == _SHARED_GROUP, f"pool:{to.uuid}"
        group, thin_pool = group_of(to, settings, shared=shared)
        lvm = Lvm(ToolRunner(), group, exclusive=shared)
        images = LvmStore(lvm, self._engine, id=identity, thin_pool=thin_pool, wipe=settings.wipe, shared=shared)
        return NotedStore(images, LvmNotes(lvm, id=identity))

    def _image(self, to: ImageStoreTO) -> DataStore:
        uri = split_url(to.uri)
        if uri.scheme in ("http", "https"):
            from stores.backends.http import HttpStore

            return RetryingStore(
                HttpStore(to.uri.reveal(), self._settings, self._engine), attempts=self._settings.attempts
            )
        if uri.scheme == "file":
            if uri.netloc not in ("", "localhost") or uri.query or uri.fragment:
                raise InvalidReference("a file:// URI names a directory of this host and nothing else")
            path = unquote(uri.path).rstrip("/")
            if not path.isprintable():
                raise InvalidReference("the directory of a file:// URI has characters that are not printable")
            return self._directory(Path(path), f"file:{path}", allowed=self._settings.roots)
        raise _unsupported(f"an image store with a {uri.scheme or 'relative'} URI")

    def _nfs(self, to: NfsTO) -> DataStore:
        url = split_url(to.url)
        if url.scheme in ("cifs", "smb"):
            from stores.backends.smb_place import place_of_url

            place = place_of_url(to)
            return self._smb(place, f"smb:{place.name}")
        if url.scheme != "nfs":
            raise _unsupported(f"secondary storage with a {url.scheme or 'relative'} URL")
        name = export_name(url)
        mounts = {export_name(urlsplit(key)): path for key, path in self._settings.nfs_mounts.items()}
        if name in mounts:
            return self._directory(mounts[name], f"nfs:{name}", allowed=(mounts[name],), mounted=True)
        if self._mounts is not None:
            port = (f"port={url.port}",) if url.port else ()
            version = (f"vers={to.nfsVersion}",) if to.nfsVersion else ()
            mount = self._mounts.image_store(url.hostname or "", url.path, (*port, *version))
            return self._directory(mount.at, f"nfs:{name}", allowed=(mount.at.parent,), mounted=True, mount=mount)
        raise PolicyRefused(
            f"nfs://{name} is not among the mounted exports: mount it and name it in the setting pools.nfs_mounts, or have"
            " the agent mount it (nfs.mounting)",
            export=f"nfs://{name}",
        )

    def _mount_of(self, to: PrimaryDataStoreTO) -> Mount | None:
        """Of a pool; None where it is mounted already, or nobody says which export it is."""
        if self._mounts is None or not to.host or not to.path:
            return None
        options = (to.details or {}).get(MOUNT_OPTIONS)
        port = (f"port={to.port}",) if to.port else ()
        given = split_options(options.reveal()) if options is not None else ()
        return self._mounts.pool(to.uuid, to.host, to.path, (*port, *given))

    def _smb(self, place: SmbPlace, identity: str) -> DataStore:
        from stores.backends.smb import SmbStore

        store = SmbStore(place, self._settings, self._engine, id=identity)
        return RetryingStore(store, attempts=self._settings.attempts)

    def _directory(
        self,
        root: Path,
        identity: str,
        *,
        allowed: Sequence[Path],
        mounted: bool = False,
        mount: Mount | None = None,
    ) -> DataStore:
        from stores.backends.filesystem import FilesystemStore

        store = FilesystemStore(
            root,
            self._engine,
            id=identity,
            allowed=allowed,
            mounted=mounted,
            file_mode=self._settings.file_mode,
            calls=mount,
        )
        return store if mount is None else MountedStore(store, mount)


def _not_staged(store_id: str, outcome: Negotiation) -> RequirementNotMet:
    """A write that was only to be staged, where that cannot be done."""
    return RequirementNotMet(
        f"store {store_id} was to be written by way of this host, which needs a cache pool (cache.pools), a store that takes"
        " uploads, and a file to fill: ask for durability `stored`",
        accepted=[kind.value for kind in outcome.accepted],
        offered=sorted(kind.value for kind in outcome.offered),
        store=store_id,
    )


def _unsupported(what: str) -> StoreUnsupported:
    return StoreUnsupported(
        f"{what} is not supported; supported are: {'; '.join(SUPPORTED)}", supported=list(SUPPORTED)
    )
