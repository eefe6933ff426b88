"""Commands and answers: one set of models, whatever dialect carried them here.

Plain JSON is the models' own form: `{"id": "c-1", "command": "Copy", "source": {...}, "destination": {...}}`. Inside are
CloudStack's transfer objects (`stores.to`), and where CloudStack's command has a field of the same meaning, that field has
CloudStack's name (classes of `org.apache.cloudstack.storage.command`, `com.cloud.agent.api` and its `storage` package).
Two kinds of field differ on purpose: a copy says `source` and `destination`, and a pool is a `PrimaryDataStoreTO`
everywhere, where CloudStack also has its narrower `StorageFilerTO`.

A command's own unknown fields are refused, so that a misspelt option cannot be lost; those of the transfer objects are
ignored. Sizes are bytes, times seconds since the epoch. Every dump of a model shows secrets as `***`.
"""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from agent.backup_models import BackupTree, BackupVerified
from hypervisors.contract import HypervisorType
from stores.contract import MiB
from stores.secret import Secret
from stores.to import (
    DataStoreTO,
    DataTO,
    DiskTO,
    PrimaryDataStoreTO,
    SnapshotObjectTO,
    VolumeObjectTO,
)

MAX_DEADLINE_S = 7 * 24 * 3600.0
SCRUB_RATE = 64 * MiB

CommandId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
"""The client's name of a command. It becomes part of URLs and of temporary file names, hence the few characters."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


# --------------------------------------------------------------------------------------------------- commands


class _Command(_Model):
    """The envelope. A command sent again with the id of an earlier one gets the earlier one's answer."""

    writes: ClassVar[bool] = True
    """Whether an interrupted run may leave something that recovery has to look at."""

    id: CommandId | None = None  # the dispatcher gives one to a command that has none
    deadline_s: Annotated[float, Field(gt=0, le=MAX_DEADLINE_S)] | None = None  # from acceptance; waiting counts
    hypervisorType: HypervisorType | None = None  # the agent's own when absent


def _is_attachable(disk: DiskTO) -> DiskTO:
    if (disk.type == "ISO", disk.data.type) not in ((True, "template"), (False, "volume")):
        raise ValueError(
            "a disk of type ISO, with a template as its data, or of another type, with a volume, can be attached and detached"
        )
    return disk


GuestDisk = Annotated[DiskTO, AfterValidator(_is_attachable)]
Durability: TypeAlias = Literal["stored", "staged"]
"""`stored`: the store confirmed it. `staged`: it is safe on this host, and uploaded until it is stored."""

VmName = Annotated[str, Field(pattern=r"^[^/\x00-\x1f]{1,255}$")]


class Copy(_Command):
    """CopyCommand. The destination comes back with its path, sizes and format filled in."""

    command: Literal["Copy"] = "Copy"
    source: DataTO  # srcTO
    destination: DataTO  # destTO
    cache: Literal["prefer"] | None = None  # ours: read through the cache even where the store could be read without
    durability: Durability = "stored"  # ours: what the destination has to be when this is answered


class CreateObject(_Command):
    """CreateObjectCommand: an empty volume."""

    command: Literal["CreateObject"] = "CreateObject"
    data: DataTO


class Delete(_Command):
    """DeleteCommand. What is not there is deleted."""

    command: Literal["Delete"] = "Delete"
    data: DataTO
    merge: bool = False  # ours, for a backup that later ones build on: make these independent of it first


class RevertSnapshot(_Command):
    """RevertSnapshotCommand: the volume has the content of the snapshot again."""

    command: Literal["RevertSnapshot"] = "RevertSnapshot"
    data: SnapshotObjectTO
    dataOnPrimaryStorage: SnapshotObjectTO | None = None  # the snapshot in the pool, where `data` is its backup

    @property
    def snapshot(self) -> SnapshotObjectTO:
        return self.dataOnPrimaryStorage or self.data


class ResizeVolume(_Command):
    """ResizeVolumeCommand: the volume as `data`, or as CloudStack sends it, `path` and `pool`."""

    command: Literal["ResizeVolume"] = "ResizeVolume"
    data: VolumeObjectTO | None = None
    path: str | None = None
    pool: PrimaryDataStoreTO | None = None
    newSize: Annotated[int, Field(gt=0)]
    shrinkOk: bool = False
    passphrase: Secret | None = None
    encryptFormat: str | None = None

    @model_validator(mode="after")
    def _names_one_volume(self) -> ResizeVolume:
        by_path = self.path is not None and self.pool is not None
        if (self.data is not None) == by_path or (self.data is not None and (self.path or self.pool)):
            raise ValueError("name the volume either by data, or by path and pool")
        return self

    @property
    def volume(self) -> VolumeObjectTO:
        if self.data is not None:
            return self.data
        if self.pool is None:
            raise ValueError("name the volume either by data, or by path and pool")
        return VolumeObjectTO(
            path=self.path, dataStore=self.pool, passphrase=self.passphrase, encryptFormat=self.encryptFormat
        )


class MigrateVolume(_Command):
    """MigrateVolumeCommand: the volume is at `destination` and nowhere else; a guest of KVM that runs with it goes on."""

    command: Literal["MigrateVolume"] = "MigrateVolume"
    source: VolumeObjectTO  # srcData
    destination: VolumeObjectTO  # destData


class Attach(_Command):
    """AttachCommand. A volume: the guest has it, as device `disk.diskSeq` or the first that is free. An ISO: it is in the
    guest's drive, where the hypervisor keeps it; else it is a file of this host that stays until Dettach, and the guest is
    not touched."""

    command: Literal["Attach"] = "Attach"
    disk: GuestDisk
    vmName: VmName
    readOnly: bool = False  # ours, of a volume
    insert: bool = False  # ours, of an ISO: refused where it would only become a file


class Dettach(_Command):
    """DettachCommand (CloudStack's spelling): the guest does not have the volume; the ISO is not in its drive, or its file may
    go. What is not attached is detached."""

    command: Literal["Dettach"] = "Dettach"
    disk: GuestDisk
    vmName: VmName
    waitDetachDevice: Annotated[int, Field(ge=0)] | None = None  # ms that the guest has to let go of a volume


class IntroduceObject(_Command):
    """IntroduceObjectCmd: an image that somebody else put into a pool becomes known."""

    command: Literal["IntroduceObject"] = "IntroduceObject"
    data: DataTO  # dataTO


class ForgetObject(_Command):
    """ForgetObjectCmd: what is known of an image in a pool goes; the image stays."""

    command: Literal["ForgetObject"] = "ForgetObject"
    data: DataTO  # dataTO


class CreateStoragePool(_Command):
    """CreateStoragePoolCommand."""

    command: Literal["CreateStoragePool"] = "CreateStoragePool"
    pool: PrimaryDataStoreTO


class ModifyStoragePool(_Command):
    """ModifyStoragePoolCommand: `add` connects this host to the pool, otherwise it is let go."""

    command: Literal["ModifyStoragePool"] = "ModifyStoragePool"
    add: bool = True
    pool: PrimaryDataStoreTO


class DeleteStoragePool(_Command):
    """DeleteStoragePoolCommand."""

    command: Literal["DeleteStoragePool"] = "DeleteStoragePool"
    pool: PrimaryDataStoreTO


class ComputeChecksum(_Command):
    """ComputeChecksumCommand: of the stored object's bytes. The answer's `details` is the digest in hex."""

    writes: ClassVar[bool] = False
    command: Literal["ComputeChecksum"] = "ComputeChecksum"
    store: DataStoreTO
    templatePath: str
    algorithm: str = "MD5"


class GetStorageStats(_Command):
    """GetStorageStatsCommand."""

    writes: ClassVar[bool] = False
    command: Literal["GetStorageStats"] = "GetStorageStats"
    store: DataStoreTO


class GetVolumeStats(_Command):
    """GetVolumeStatsCommand."""

    writes: ClassVar[bool] = False
    command: Literal["GetVolumeStats"] = "GetVolumeStats"
    pool: PrimaryDataStoreTO
    volumeUuids: list[str]


class ListDataStoreObjects(_Command):
    """ListDataStoreObjectsCommand: one page of what lies under `path`."""

    writes: ClassVar[bool] = False
    command: Literal["ListDataStoreObjects"] = "ListDataStoreObjects"
    store: DataStoreTO
    path: str = ""
    startIndex: Annotated[int, Field(ge=0)] = 0
    pageSize: Annotated[int, Field(gt=0, le=10_000)] = 1000
    recursive: bool = False  # ours: all objects below, instead of one directory level


class VerifyBackup(_Command):
    """Ours: read a backup, and all that it builds on, and compare it with the manifests."""

    writes: ClassVar[bool] = False
    command: Literal["VerifyBackup"] = "VerifyBackup"
    store: DataStoreTO
    path: str


class ListBackups(_Command):
    """Ours: the backups below `path`, and which builds on which."""

    writes: ClassVar[bool] = False
    command: Literal["ListBackups"] = "ListBackups"
    store: DataStoreTO
    path: str = ""


class Prefetch(_Command):
    """Ours: bring an object into the cache."""

    writes: ClassVar[bool] = False
    command: Literal["Prefetch"] = "Prefetch"
    data: DataTO


class ScrubCache(_Command):
    """Ours: read entries of the cache in full and compare their digests; what fails is quarantined."""

    writes: ClassVar[bool] = False
    command: Literal["ScrubCache"] = "ScrubCache"
    pool: str | None = None  # all pools when absent
    olderThan: Annotated[float, Field(ge=0)] = 0  # only entries that were proved longer ago, in seconds
    rate: Annotated[int, Field(gt=0)] = SCRUB_RATE  # bytes per second at most, for each pool


class ReconcileCache(_Command):
    """Ours: compare the ledger with the directory. Unknown files are reported, never deleted."""

    writes: ClassVar[bool] = False
    command: Literal["ReconcileCache"] = "ReconcileCache"
    pool: str | None = None  # all pools when absent


class Ping(_Command):
    """Does nothing, through the whole path of a command."""

    writes: ClassVar[bool] = False
    command: Literal["Ping"] = "Ping"


Command: TypeAlias = Annotated[
    Copy
    | CreateObject
    | Delete
    | RevertSnapshot
    | ResizeVolume
    | MigrateVolume
    | CreateStoragePool
    | ModifyStoragePool
    | DeleteStoragePool
    | ComputeChecksum
    | GetStorageStats
    | GetVolumeStats
    | ListDataStoreObjects
    | VerifyBackup
    | ListBackups
    | Attach
    | Dettach
    | IntroduceObject
    | ForgetObject
    | Prefetch
    | ScrubCache
    | ReconcileCache
    | Ping,
    Field(discriminator="command"),
]

COMMAND: TypeAdapter[Command] = TypeAdapter(Command)
"""Validates and describes any command: `COMMAND.validate_json(body)`, `COMMAND.json_schema()`."""


def canonical(command: Command) -> bytes:
    """What the command asks for, secrets in clear, in a form that is equal for equal commands: to be digested, never kept.

    The envelope is not part of it: a client may well send a command again with the time that it has left.
    """
    content = _revealed(command)
    for name in ("id", "deadline_s"):
        content.pop(name, None)
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def _revealed(value: Any) -> Any:
    if isinstance(value, Secret):
        return value.reveal()
    if isinstance(value, BaseModel):
        return {name: _revealed(part) for name, part in value if part is not None}
    if isinstance(value, dict):
        return {key: _revealed(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_revealed(part) for part in value]
    return value


# ---------------------------------------------------------------------------------------------------- answers


class State(StrEnum):
    """Where a command is. The last four are final."""

    ACCEPTED = "accepted"  # journalled; waits for its locks or for its turn
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"  # by `cancel`; nothing of it is left
    INTERRUPTED = "interrupted"  # the agent stopped or died; nothing of it is left

    @property
    def final(self) -> bool:
        return self not in (State.ACCEPTED, State.RUNNING)


class Failure(_Model):
    """Why a command did not succeed. `kind` is stable; `retryable` says whether sending it again can help."""

    kind: str
    retryable: Literal["yes", "no", "operator"]
    message: str
    details: dict[str, object] = {}


class ProgressReport(_Model):
    """How far a running command is."""

    phase: str
    bytes: int = 0  # done in this phase
    total: int | None = None  # expected in this phase
    rate: float = 0.0  # bytes per second, averaged over this phase


class VolumeStats(_Model):
    """VolumeStatsEntry: both in bytes."""

    physicalSize: int
    virtualSize: int


class PoolInfo(_Model):
    """StoragePoolInfo, as far as an agent knows it."""

    uuid: str
    localPath: str | None = None
    poolType: str
    capacityBytes: int | None = None
    availableBytes: int | None = None


class PoolScrubbed(_Model):
    """What a scrub has seen in one pool of the cache."""

    entries: int
    bytes: int
    quarantined: list[str]  # refs


class PoolReconciled(_Model):
    """What did not agree in one pool of the cache."""

    strays: dict[str, int]  # files that the ledger does not know, by path below the pool's directory, and their bytes
    vanished: list[str]  # refs of entries whose files are gone
    correctedSums: bool


class Outcome(_Model):
    """What a successful command gives back; which fields there are depends on the command."""

    durability: Durability | None = None  # of what was written
    upload: str | None = None  # of what is staged: the id of the upload that brings it to its store
    newData: DataTO | None = None  # Copy, MigrateVolume
    data: DataTO | None = None  # CreateObject, RevertSnapshot, ResizeVolume, IntroduceObject, Prefetch
    disk: DiskTO | None = None  # Attach, with the path of the file, or the device in the guest; Dettach
    newSize: int | None = None  # ResizeVolume
    details: str | None = None  # ComputeChecksum: the digest
    usedBytes: int | None = None  # GetStorageStats
    capacityBytes: int | None = None  # GetStorageStats; absent where the store has no such number
    poolInfo: PoolInfo | None = None  # ModifyStoragePool, CreateStoragePool
    volumeStats: dict[str, VolumeStats] | None = None  # GetVolumeStats, by path
    pathExists: bool | None = None  # ListDataStoreObjects, and the parallel lists of its page:
    count: int | None = None  # of all there are
    names: list[str] | None = None
    paths: list[str] | None = None
    isDirs: list[bool] | None = None
    sizes: list[int] | None = None
    lastModified: list[int] | None = None  # ms since the epoch
    verified: BackupVerified | None = None  # VerifyBackup
    backups: BackupTree | None = None  # ListBackups
    scrubbed: dict[str, PoolScrubbed] | None = None  # ScrubCache, by pool
    reconciled: dict[str, PoolReconciled] | None = None  # ReconcileCache, by pool


class Answer(Outcome):
    """The state of one command. From a final state on it never changes."""

    id: str
    command: str
    state: State
    result: bool = False  # succeeded
    error: Failure | None = None
    accepted_at: float
    started_at: float | None = None
    finished_at: float | None = None
    progress: ProgressReport | None = None  # only while running

    @classmethod
    def final(
        cls,
        id: str,  # noqa: A002  the field's name
        command: str,
        state: State,
        *,
        accepted_at: float,
        started_at: float | None,
        finished_at: float,
        outcome: Outcome | None = None,
        error: Failure | None = None,
    ) -> Answer:
        """The last answer that a command gets: with the outcome of a success, or with what went wrong."""
        return cls.model_validate(
            {
                **dict(outcome or ()),
                "id": id,
                "command": command,
                "state": state,
                "result": state is State.SUCCEEDED,
                "error": error,
                "accepted_at": accepted_at,
                "started_at": started_at,
                "finished_at": finished_at,
            }
        )

    def wire(self) -> str:
        """As JSON, absent fields left out."""
        return self.model_dump_json(by_alias=True, exclude_none=True)


class Event(_Model):
    """One step of a command's progress, as subscribers see it. The last one has a final state."""

    id: str
    state: State
    progress: ProgressReport | None = None
