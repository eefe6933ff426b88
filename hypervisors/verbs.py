"""The storage verbs as plain values: what is asked, apart from who does it and when.

One value serves the queue, the locks, the run, the explanation and the recovery after a crash alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from hypervisors.contract import HypervisorType
from hypervisors.documents import HIDDEN
from stores.contract import Progress, Silent
from stores.errors import InvalidReference
from stores.resolver import Durability
from stores.to import DataStoreTO, DataTO, PrimaryDataStoreTO, SnapshotObjectTO, TemplateObjectTO, VolumeObjectTO


@dataclass(frozen=True, slots=True)
class Call:
    """Who asks. `token` is the command's id: it marks everything written, so that a dead command's leftovers are found."""

    token: str
    hypervisor: HypervisorType
    progress: Progress = field(default_factory=Silent)


@dataclass(frozen=True, slots=True)
class Copy:
    source: DataTO
    destination: DataTO
    prefer_cache: bool = False  # read the source through the cache even where it could be read without
    durability: Durability = Durability.STORED  # of what is written into an image store


@dataclass(frozen=True, slots=True)
class Create:
    """An empty volume, or a snapshot of a volume."""

    data: DataTO


@dataclass(frozen=True, slots=True)
class Delete:
    data: DataTO
    merge: bool = False  # of a backup that later ones build on: make these independent of it first


@dataclass(frozen=True, slots=True)
class Revert:
    """The snapshot's volume has its content again. What was written since is lost."""

    snapshot: SnapshotObjectTO


@dataclass(frozen=True, slots=True)
class Resize:
    volume: VolumeObjectTO
    new_size: int  # bytes, virtual
    shrink_ok: bool = False


@dataclass(frozen=True, slots=True)
class Migrate:
    """The volume is to be at another place, and only there."""

    volume: VolumeObjectTO
    destination: VolumeObjectTO


@dataclass(frozen=True, slots=True)
class ComputeChecksum:
    store: DataStoreTO
    path: str
    algorithm: str = "md5"


@dataclass(frozen=True, slots=True)
class GetStorageStats:
    store: DataStoreTO


@dataclass(frozen=True, slots=True)
class GetVolumeStats:
    pool: PrimaryDataStoreTO
    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CreatePool:
    pool: PrimaryDataStoreTO


@dataclass(frozen=True, slots=True)
class ModifyPool:
    """The pool as the management server knows it now; checks it and reports its sizes."""

    pool: PrimaryDataStoreTO


@dataclass(frozen=True, slots=True)
class DeletePool:
    """The agent lets go of the pool. Its data stays. `everywhere`: and so do the hypervisor's hosts, where it is theirs."""

    pool: PrimaryDataStoreTO
    everywhere: bool = True


@dataclass(frozen=True, slots=True)
class ListObjects:
    store: DataStoreTO
    path: str = ""
    start_index: int = 0
    page_size: int = 100
    recursive: bool = False  # all objects below, instead of one directory level


@dataclass(frozen=True, slots=True)
class VerifyBackup:
    """Whether a backup, and all that it builds on, is what the manifests say."""

    store: DataStoreTO
    path: str


@dataclass(frozen=True, slots=True)
class ListBackups:
    """The backups below `prefix`."""

    store: DataStoreTO
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class AttachIso:
    """The guest `vm` gets an ISO: in its drive, or, where the handler does nothing with guests, as a file of this host, which
    somebody else gives to the guest. `insert`: only the former will do. Without a guest it is only explained."""

    iso: TemplateObjectTO
    vm: str = ""
    insert: bool = False


@dataclass(frozen=True, slots=True)
class DetachIso:
    """The guest `vm` does not need the ISO any more."""

    iso: TemplateObjectTO
    vm: str


@dataclass(frozen=True, slots=True)
class AttachVolume:
    """`device`: the number in the guest, None for the first that is free."""

    volume: VolumeObjectTO
    vm: str
    device: int | None = None
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class DetachVolume:
    """The guest has `within_s` seconds to let go."""

    volume: VolumeObjectTO
    vm: str
    within_s: float


@dataclass(frozen=True, slots=True)
class Introduce:
    """An image that somebody else put into a pool becomes known."""

    data: DataTO


@dataclass(frozen=True, slots=True)
class Forget:
    """What is known of an image goes. The image stays."""

    data: DataTO


@dataclass(frozen=True, slots=True)
class Prefetch:
    """Bring an object into the cache, for others to find it there."""

    data: DataTO


Request: TypeAlias = (
    Copy
    | Create
    | Delete
    | Revert
    | Resize
    | Migrate
    | ComputeChecksum
    | GetStorageStats
    | GetVolumeStats
    | CreatePool
    | ModifyPool
    | DeletePool
    | ListObjects
    | VerifyBackup
    | ListBackups
    | AttachIso
    | DetachIso
    | AttachVolume
    | DetachVolume
    | Introduce
    | Forget
    | Prefetch
)


def ref_of(data: DataTO) -> str:
    """The name of the image inside its store: `path`, else what CloudStack would name it by."""
    ref = data.path or data.uuid or data.name
    if not ref:
        raise InvalidReference(f"this {data.type} names no object: path, uuid or name is needed")
    return named(ref)


def snapshot_name(data: SnapshotObjectTO) -> tuple[str, str]:
    """The volume's ref and the snapshot's name, of a snapshot in a pool: its path is `VOLUME/NAME`. A new one may come without
    a path; then `volume`, and `uuid` or `name`, say it."""
    volume = ref_of(data.volume) if data.volume is not None else ""
    before, _, name = named(data.path or data.uuid or data.name or "").rpartition("/")
    found = before or volume
    if not found or not name or volume not in ("", found):
        raise InvalidReference(
            "a snapshot in a pool is named VOLUME/NAME by its path, or by its volume and its name, and these must agree",
            path=data.path,
            volume=volume,
        )
    return found, name


def parent_of(backup: SnapshotObjectTO) -> str | None:
    """The ref of the backup that this one is to build on."""
    parent = backup.parentSnapshotPath or next(reversed(backup.parents or ()), None)
    return named(parent) if parent else None


def named(path: str) -> str:
    """The ref that a path in a command means. `InvalidReference` for our own records, which no command may touch."""
    ref = path.removeprefix("/")
    if ref.partition("/")[0] == HIDDEN:
        raise InvalidReference(f"{HIDDEN} holds the agent's own records; no command may name it", ref=ref[:200])
    return ref


def touched(request: Request) -> tuple[str, ...]:
    """Names of what the request changes or must find unchanged while it runs: its locks, in the one order of all.

    Only images of pools, a snapshot's volume in its place, what is written into image stores, pools, and what is attached to
    whom. Image stores are read at a pinned version, which keeps nobody out.
    """
    match request:
        case Copy(source, destination):
            keys = {_key(destination)}
            if source.store.storeType == "primary":
                keys.add(_key(source))
            if destination.type == "snapshot" and (parent := parent_of(destination)):
                keys.add(_key(destination.model_copy(update={"path": parent})))
            return tuple(sorted(keys))
        case Create(data) | Delete(data) | Introduce(data) | Forget(data):
            return (_key(data),)
        case Resize(volume):
            return (_key(volume),)
        case Migrate(volume, destination):
            return tuple(sorted({_key(volume), _key(destination)}))
        case Revert(snapshot):
            return (_key(snapshot),)
        case AttachIso(iso, vm) | DetachIso(iso, vm):
            return tuple(sorted((attachment(iso, vm), _guest(vm))))
        case AttachVolume(volume, vm) | DetachVolume(volume, vm):
            return tuple(sorted((_key(volume), _guest(vm))))
        case CreatePool(pool) | ModifyPool(pool) | DeletePool(pool):
            return (f"{pool.uuid}/",)
        case _:
            return ()


def attachment(iso: DataTO, vm: str) -> str:
    """Name of the use of one ISO by one guest, `attached:VM/ISO`: what holds it in the cache."""
    return f"attached:{vm}/{ref_of(iso)}"


def _guest(vm: str) -> str:
    """Name of a virtual machine, where its devices change."""
    return f"guest:{vm}"


def is_linked(source: DataTO, destination: DataTO) -> bool:
    """Whether a copy only refers to its source: template to volume inside one pool that does not ask for full clones. What is
    encrypted is so as a whole."""
    here, there = source.store, destination.store
    if destination.type == "volume" and (destination.passphrase or destination.encryptFormat):
        return False
    return (
        here.storeType == "primary"
        and there.storeType == "primary"
        and here.uuid == there.uuid
        and (source.type, destination.type) == ("template", "volume")
        and not there.fullCloneFlag
    )


def is_direct(request: Copy) -> bool:
    """Whether a copy backs up a volume as it is now, without a snapshot that was made before."""
    source, destination = request.source, request.destination
    return (source.type, destination.type) == ("volume", "snapshot") and destination.store.storeType != "primary"


def _key(data: DataTO) -> str:
    store = data.store
    if store.storeType != "primary":
        return f"{store.storeType}/{ref_of(data)}"
    return f"{store.uuid}/{snapshot_name(data)[0] if data.type == 'snapshot' else ref_of(data)}"
