"""Every storage verb, written once over any hypervisor and any store.

A verb opens its stores through the resolver, asks the handler what it accepts, lets it read and write, and publishes: record
first, then the image, both durable. Names of hypervisors and of kinds of stores do not occur here. `Operations` is the door;
the verbs themselves are in `copying`, `volumes`, `pools`, `explaining` and `recovery`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hypervisors import (
    attaching,
    copying,
    explaining,
    exporting,
    guest_volumes,
    introducing,
    migrating,
    pools,
    recovery,
    relaying,
    reverting,
    snapshots,
    volumes,
)
from hypervisors.attaching import Attached
from hypervisors.backups import carrying, direct, flattening, overview, removing, restoring, sending
from hypervisors.backups.overview import Checked, Node, Tree, Verified
from hypervisors.context import Context
from hypervisors.contract import HypervisorHandler, HypervisorType, Operation
from hypervisors.copying import Copied
from hypervisors.explaining import Explanation, Side
from hypervisors.guests import Attachment
from hypervisors.images.gate import GateLimits
from hypervisors.pools import Entry, Listing, PoolInfo
from hypervisors.recovery import Recovered
from hypervisors.verbs import (
    AttachIso,
    AttachVolume,
    Call,
    ComputeChecksum,
    Copy,
    Create,
    CreatePool,
    Delete,
    DeletePool,
    DetachIso,
    DetachVolume,
    Forget,
    GetStorageStats,
    GetVolumeStats,
    Introduce,
    ListObjects,
    Migrate,
    ModifyPool,
    Prefetch,
    Request,
    Resize,
    Revert,
    is_direct,
)
from hypervisors.volumes import VolumeStats
from stores.contract import Usage
from stores.resolver import Resolver
from stores.to import DataStoreTO, DataTO, SnapshotObjectTO, VolumeObjectTO
from stores.transfer.engine import TransferEngine

__all__ = [
    "Attached",
    "Checked",
    "Copied",
    "Entry",
    "Explanation",
    "Listing",
    "Node",
    "Operations",
    "PoolInfo",
    "Recovered",
    "Side",
    "Tree",
    "Verified",
    "VolumeStats",
]


class Operations:
    """The verbs. They hold no state; whoever calls has taken the locks that `verbs.touched` names.

    Every verb may be cancelled and then leaves nothing behind: no file, no record, no process, no socket. All raise the
    errors of `stores.errors` and `hypervisors.contract`, and nothing else on purpose.
    """

    def __init__(
        self,
        resolver: Resolver,
        handlers: Mapping[HypervisorType, HypervisorHandler],
        engine: TransferEngine,
        clock: Callable[[], float],
        limits: GateLimits | None = None,
    ) -> None:
        """`clock` gives seconds since the epoch; `limits` are the gate's."""
        self._context = Context(resolver, handlers, engine, clock, limits or GateLimits())

    async def copy(self, call: Call, request: Copy) -> Copied:
        """Source to destination: in place where the formats agree, converted where not, linked inside one pool.

        Returns the destination with path, size, format and (templates) physicalSize. Durable when it returns. A template
        that is there already, made from the same version or with the same checksum, is success without a transfer;
        anything else under that name is `AlreadyExists`. Nothing is published before a checksum in the command agreed.

        A volume to an image store becomes an image that stands for itself. A snapshot to an image store is backed up: whole,
        or, where the destination names a parent that is a sound backup, and the volume knows what changed since, only that;
        `note` says why a backup is whole although a parent was named. Backing up the same snapshot to the same name again is
        success. A backup to a pool is restored with all that it builds on, `BrokenChain` or `BackupDamaged` before a byte is
        written. As durable as the request asks when it returns.

        A volume to a snapshot in an image store is backed up as it is now, also while a guest of KVM runs with it: as by a
        snapshot that is backed up and deleted at once. The volume knows from then on what changes. To the same name again is
        success, with the backup that was made before.

        A template or a volume from one image store to another goes as it is, and so does a backup, under the same path. A
        snapshot to a template or volume of an image store becomes one image.
        """
        if relaying.is_relay(request):
            return await relaying.relay(self._context, call, request)
        if carrying.is_carrying(request):
            return await carrying.carry(self._context, call, request)
        if flattening.is_flattening(request):
            return await flattening.flatten(self._context, call, request)
        operation = copying.operation_of(request)
        if is_direct(request):
            return await direct.back_up(self._context, call, request)
        match operation:
            case Operation.EXPORT_VOLUME:
                return await exporting.export(self._context, call, request)
            case Operation.BACK_UP:
                return await sending.back_up(self._context, call, request)
            case Operation.RESTORE:
                return await restoring.restore(self._context, call, request)
            case _:
                return await copying.copy(self._context, call, request)

    async def create(self, call: Call, request: Create) -> DataTO:
        """An empty volume: THIN, SPARSE or FAT. Returns it with path, size and format. Durable when it returns.

        Or a snapshot of a volume: of one that a guest has open it is a copy, made by KVM's guests, and `ImageLocked` where that
        cannot be. It comes back with its path, `VOLUME/NAME`,
        and the bytes that its volume took as physicalSize.
        """
        if request.data.type == "snapshot":
            return await snapshots.create(self._context, call, request.data)
        return await volumes.create(self._context, call, request)

    async def delete(self, call: Call, request: Delete) -> None:
        """Idempotent: what is not there is deleted. `ImageInUse` while our records show images or snapshots built on it.

        What changed since a deleted snapshot is not forgotten: it counts for the one before it, or, where there is a backup
        of the snapshot, for the next incremental one.

        A backup in an image store goes with its manifest. While others build on it that is `ImageInUse`, unless `merge`: then
        these become full backups before. Anything else in an image store is deleted by its exact name, or, where that is a
        folder's, with everything below it.
        """
        if request.data.type == "snapshot" and request.data.store.storeType != "primary":
            await removing.delete(self._context, call, request)
        elif request.data.type == "snapshot":
            await snapshots.delete(self._context, call, request.data)
        elif request.data.store.storeType != "primary":
            await relaying.delete(self._context, request)
        else:
            await volumes.delete(self._context, call, request)

    async def revert(self, call: Call, request: Revert) -> SnapshotObjectTO:
        """The volume's content and size are those of the snapshot again, in one step. Returns the snapshot.

        `ImageInUse` for a volume with linked clones; `NotFound` for a snapshot that was deleted.
        """
        return await reverting.revert(self._context, call, request)

    async def resize(self, call: Call, request: Resize) -> VolumeObjectTO:
        """Returns the volume with its new size. `SizeRefused` for shrinking, unless told."""
        return await volumes.resize(self._context, call, request)

    async def migrate(self, call: Call, request: Migrate) -> DataTO:
        """The volume is at its destination, in another pool or under another name, and nowhere else; also while a guest of KVM
        runs with it, which goes on. Returns the destination with path, size and format. What changed since earlier backups is
        not known there. `ImageInUse` for a volume with snapshots or linked clones."""
        return await migrating.migrate(self._context, call, request)

    async def checksum(self, call: Call, request: ComputeChecksum) -> str:
        """The digest of the stored object's bytes, lower-case hex."""
        return await volumes.checksum(self._context, call, request)

    async def storage_stats(self, call: Call, request: GetStorageStats) -> Usage:
        """Bytes used, and capacity where the store has such a number."""
        return await pools.storage_stats(self._context, call, request)

    async def volume_stats(self, call: Call, request: GetVolumeStats) -> dict[str, VolumeStats]:
        """Sizes by path. Volumes that are missing, or whose format was never recorded, are left out."""
        return await volumes.volume_stats(self._context, call, request)

    async def create_pool(self, call: Call, request: CreatePool) -> PoolInfo:
        """The pool's directory is there, allowed and writable; it is not made. A pool that the hypervisor itself keeps is made
        where there is none, and all its hosts use it. Idempotent."""
        return await pools.connect(self._context, call, request.pool, make=True)

    async def modify_pool(self, call: Call, request: ModifyPool) -> PoolInfo:
        """As `create_pool`, of a pool that is there; what lies in it is looked at anew."""
        return await pools.connect(self._context, call, request.pool, make=False)

    async def delete_pool(self, call: Call, request: DeletePool) -> None:
        """Give back what the agent holds of the pool; with `everywhere`, what the hypervisor's hosts hold too. Deletes no data.
        Idempotent."""
        await pools.disconnect(self._context, call, request)

    async def list_objects(self, call: Call, request: ListObjects) -> Listing:
        """One page of one directory level."""
        return await pools.list_objects(self._context, call, request)

    async def attach_iso(self, call: Call, request: AttachIso) -> Attached:
        """The ISO as a file that the guest may read until `detach_iso`, over restarts: where it lies, or from the cache, which
        does not let it go. Idempotent by guest and ISO. Past the gate before anything is kept. It is in the guest's drive then,
        where the handler's guests read files; else the guest is not touched.

        An ISO in a pool that the hypervisor itself keeps goes into the guest's drive: see `Guests.insert`.
        """
        return await attaching.attach(self._context, call, request)

    async def detach_iso(self, call: Call, request: DetachIso) -> None:
        """The guest's drive does not have it, and the file may go. Idempotent, and contacts no store but those of this host."""
        await attaching.detach(self._context, call, request)

    async def attach_volume(self, call: Call, request: AttachVolume) -> Attachment:
        """The guest has the volume: see `Guests.attach`. `OperationUnsupported` where the handler does not touch guests."""
        return await guest_volumes.attach(self._context, call, request)

    async def detach_volume(self, call: Call, request: DetachVolume) -> None:
        """The guest does not have the volume: see `Guests.detach`. Idempotent; a volume that is not there is detached."""
        await guest_volumes.detach(self._context, call, request)

    async def introduce(self, call: Call, request: Introduce) -> DataTO:
        """An image that somebody else put into the pool is recorded: returns it with its path, size and format. What is known
        already is success. A file passes the gate, and has to have the format that the command says."""
        return await introducing.introduce(self._context, call, request)

    async def forget(self, call: Call, request: Forget) -> None:
        """What we recorded of the image goes; the image stays, under its name. Idempotent. `ImageInUse` while clones or
        snapshots, ours too, are only what they are by our records."""
        await introducing.forget(self._context, call, request)

    async def prefetch(self, call: Call, request: Prefetch) -> DataTO:
        """The object is in the cache when this returns, as any other entry: it stays while it is used. Returns it with its
        path. `RequirementNotMet` where there is no cache."""
        return await attaching.prefetch(self._context, call, request)

    async def verify_backup(self, call: Call, to: DataStoreTO, ref: str) -> Verified:
        """Reads a backup and all that it builds on, to the last byte, and compares it with the manifests. What is wrong with
        it is said, not raised."""
        return await overview.verify(self._context, call, to, ref)

    async def backup_tree(self, to: DataStoreTO, prefix: str = "") -> Tree:
        """All backups below `prefix`, and what builds on what, by their manifests. Reads no object."""
        return await overview.tree(self._context, to, prefix)

    def explain(self, hypervisor: HypervisorType, request: Copy | AttachIso | AttachVolume) -> Explanation:
        """What a request would do and why. Contacts nothing, so it judges by what the command says."""
        return explaining.explain(self._context, hypervisor, request)

    async def recover(self, hypervisor: HypervisorType, request: Request, token: str) -> Recovered:
        """After a crash: find out what became of the request that `token` was running, and remove what it left half done.

        Idempotent. Contacts no image store, and needs none of their credentials.
        """
        return await recovery.recover(self._context, hypervisor, request, token)
