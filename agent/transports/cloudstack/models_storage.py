"""Commands on volumes, templates and snapshots, and their answers: those of CloudStack's storage subsystem, and its kin.

A field of type `DataTO` is declared as an interface in Java and wrapped by the class's name on the wire; one of a concrete
type is not (`json_shape`).
"""

from __future__ import annotations

from pydantic import Field

from agent.transports.cloudstack.models import (
    API,
    API_STORAGE,
    DIRECT_DOWNLOAD,
    STORAGE,
    WireAnswer,
    WireCommand,
)
from agent.transports.cloudstack.models_objects import DiskMade, Made, StorageFilerTO
from stores.secret import Secret
from stores.to import DataTO, DiskTO, PrimaryDataStoreTO, SnapshotObjectTO, TemplateObjectTO

# -------------------------------------------------------------------------------------------- storage subsystem


class CopyCmdAnswer(WireAnswer):
    java = f"{STORAGE}.CopyCmdAnswer"
    newData: Made | None = None


class CopyCommand(WireCommand):
    """`options` go with the source, `options2` with the destination; their values may be CHAP secrets."""

    java = f"{STORAGE}.CopyCommand"
    answered_by = CopyCmdAnswer
    srcTO: DataTO
    destTO: DataTO
    cacheTO: DataTO | None = None
    executeInSequence: bool = False
    options: dict[str, Secret] = Field(default={})
    options2: dict[str, Secret] = Field(default={})


class CreateObjectAnswer(WireAnswer):
    java = f"{STORAGE}.CreateObjectAnswer"
    data: Made | None = None


class CreateObjectCommand(WireCommand):
    java = f"{STORAGE}.CreateObjectCommand"
    answered_by = CreateObjectAnswer
    data: DataTO


class DeleteCommand(WireCommand):
    java = f"{STORAGE}.DeleteCommand"
    data: DataTO


class AttachAnswer(WireAnswer):
    java = f"{STORAGE}.AttachAnswer"
    disk: DiskMade | None = None


class AttachCommand(WireCommand):
    java = f"{STORAGE}.AttachCommand"
    answered_by = AttachAnswer
    disk: DiskTO
    vmName: str | None = None
    inSeq: bool = False
    forced: bool = False
    controllerInfo: dict[str, str] = Field(default={})


class DettachAnswer(WireAnswer):
    java = f"{STORAGE}.DettachAnswer"
    disk: DiskMade | None = None


class DetachAnswer(DettachAnswer):
    """The spelling of later versions."""

    java = f"{STORAGE}.DetachAnswer"


class DettachCommand(WireCommand):
    """`waitDetachDevice` in milliseconds."""

    java = f"{STORAGE}.DettachCommand"
    answered_by = DettachAnswer
    disk: DiskTO
    vmName: str | None = None
    managed: bool = Field(default=False, alias="_managed")
    iScsiName: str | None = Field(default=None, alias="_iScsiName")
    storageHost: str | None = Field(default=None, alias="_storageHost")
    storagePort: int = Field(default=0, alias="_storagePort")
    params: dict[str, Secret] = Field(default={})
    forced: bool = False
    waitDetachDevice: int | None = None


class DetachCommand(DettachCommand):
    """The spelling of later versions."""

    java = f"{STORAGE}.DetachCommand"
    answered_by = DetachAnswer


class IntroduceObjectAnswer(WireAnswer):
    java = f"{STORAGE}.IntroduceObjectAnswer"
    dataTO: Made | None = None


class IntroduceObjectCmd(WireCommand):
    java = f"{STORAGE}.IntroduceObjectCmd"
    answered_by = IntroduceObjectAnswer
    dataTO: DataTO


class ForgetObjectCmd(WireCommand):
    java = f"{STORAGE}.ForgetObjectCmd"
    dataTO: DataTO


class SnapshotAndCopyAnswer(WireAnswer):
    java = f"{STORAGE}.SnapshotAndCopyAnswer"
    path: str | None = Field(default=None, alias="_path")


class SnapshotAndCopyCommand(WireCommand):
    java = f"{STORAGE}.SnapshotAndCopyCommand"
    answered_by = SnapshotAndCopyAnswer
    uuidOfSourceVdi: str | None = Field(default=None, alias="_uuidOfSourceVdi")
    sourceDetails: dict[str, Secret] = Field(default={}, alias="_sourceDetails")
    destDetails: dict[str, Secret] = Field(default={}, alias="_destDetails")
    executeInSequence: bool = Field(default=True, alias="_executeInSequence")


class ResignatureAnswer(WireAnswer):
    java = f"{STORAGE}.ResignatureAnswer"
    size: int = 0
    path: str | None = None
    format: str | None = None


class ResignatureCommand(WireCommand):
    java = f"{STORAGE}.ResignatureCommand"
    answered_by = ResignatureAnswer
    details: dict[str, Secret] = Field(default={})
    executeInSequence: bool = True


class SyncVolumePathAnswer(WireAnswer):
    java = f"{STORAGE}.SyncVolumePathAnswer"
    disk: DiskTO | None = None


class SyncVolumePathCommand(WireCommand):
    java = f"{STORAGE}.SyncVolumePathCommand"
    answered_by = SyncVolumePathAnswer
    disk: DiskTO
    vmName: str | None = None


class RevertSnapshotCommand(WireCommand):
    """`data` is the snapshot's copy on secondary storage."""

    java = f"{STORAGE}.RevertSnapshotCommand"
    data: SnapshotObjectTO | None = None
    dataOnPrimaryStorage: SnapshotObjectTO | None = None
    executeInSequence: bool = Field(default=False, alias="_executeInSequence")


class CheckDataStoreStoragePolicyComplianceCommand(WireCommand):
    java = f"{STORAGE}.CheckDataStoreStoragePolicyComplianceCommand"
    storagePolicyId: str | None = None
    storagePool: StorageFilerTO | None = None


class CheckDataStoreStoragePolicyComplainceCommand(CheckDataStoreStoragePolicyComplianceCommand):
    """The spelling of earlier versions."""

    java = f"{STORAGE}.CheckDataStoreStoragePolicyComplainceCommand"


# ---------------------------------------------------------------------------------------------- direct download


class DirectDownloadAnswer(WireAnswer):
    """`retryOnOtherHosts`: whether another host may have more luck."""

    java = f"{DIRECT_DOWNLOAD}.DirectDownloadAnswer"
    templateSize: int | None = None
    installPath: str | None = None
    retryOnOtherHosts: bool = False


class DirectDownloadCommand(WireCommand):
    """A template from a URL into a pool. Only its subclasses are sent. Timeouts are milliseconds."""

    answered_by = DirectDownloadAnswer
    url: Secret
    templateId: int | None = None
    destData: TemplateObjectTO | None = None
    destPool: PrimaryDataStoreTO
    checksum: str | None = None
    headers: dict[str, Secret] = Field(default={})
    connectTimeout: int | None = None
    soTimeout: int | None = None
    connectionRequestTimeout: int | None = None
    templateSize: int | None = None
    format: str | None = None
    followRedirects: bool = False


class HttpDirectDownloadCommand(DirectDownloadCommand):
    java = f"{DIRECT_DOWNLOAD}.HttpDirectDownloadCommand"


class HttpsDirectDownloadCommand(DirectDownloadCommand):
    java = f"{DIRECT_DOWNLOAD}.HttpsDirectDownloadCommand"


class MetalinkDirectDownloadCommand(DirectDownloadCommand):
    java = f"{DIRECT_DOWNLOAD}.MetalinkDirectDownloadCommand"


class NfsDirectDownloadCommand(DirectDownloadCommand):
    java = f"{DIRECT_DOWNLOAD}.NfsDirectDownloadCommand"


class CheckUrlAnswer(WireAnswer):
    java = f"{DIRECT_DOWNLOAD}.CheckUrlAnswer"
    templateSize: int | None = None


class CheckUrlCommand(WireCommand):
    """Whether a template could be downloaded from there. Timeouts are milliseconds."""

    java = f"{DIRECT_DOWNLOAD}.CheckUrlCommand"
    answered_by = CheckUrlAnswer
    url: Secret
    format: str | None = None
    connectTimeout: int | None = None
    connectionRequestTimeout: int | None = None
    socketTimeout: int | None = None
    followRedirects: bool = False


# ------------------------------------------------------------------------------------- volumes, outside of it


class ResizeVolumeAnswer(WireAnswer):
    java = f"{API_STORAGE}.ResizeVolumeAnswer"
    newSize: int = 0


class ResizeVolumeCommand(WireCommand):
    java = f"{API_STORAGE}.ResizeVolumeCommand"
    answered_by = ResizeVolumeAnswer
    path: str
    pool: StorageFilerTO
    currentSize: int | None = None
    newSize: int
    shrinkOk: bool = False
    vmInstance: str | None = None
    chainInfo: str | None = None
    managed: bool = False
    iScsiName: str | None = None
    passphrase: Secret | None = None
    encryptFormat: str | None = None


class MigrateVolumeAnswer(WireAnswer):
    java = f"{API_STORAGE}.MigrateVolumeAnswer"
    volumePath: str | None = None
    volumeChain: str | None = None


class MigrateVolumeCommand(WireCommand):
    """Either `volumePath` from `sourcePool` to `pool`, or `srcData` to `destData`."""

    java = f"{API_STORAGE}.MigrateVolumeCommand"
    answered_by = MigrateVolumeAnswer
    volumeId: int | None = None
    volumePath: str | None = None
    chainInfo: str | None = None
    pool: StorageFilerTO | None = None
    sourcePool: StorageFilerTO | None = None
    attachedVmName: str | None = None
    volumeType: str | None = None
    hostGuidInTargetCluster: str | None = None
    srcData: DataTO | None = None
    destData: DataTO | None = None
    srcDetails: dict[str, Secret] = Field(default={})
    destDetails: dict[str, Secret] = Field(default={})


class PrimaryStorageDownloadAnswer(WireAnswer):
    java = f"{API_STORAGE}.PrimaryStorageDownloadAnswer"
    installPath: str | None = None
    templateSize: int = 0


class PrimaryStorageDownloadCommand(WireCommand):
    """Of old versions: a template from secondary storage into a pool."""

    java = f"{API_STORAGE}.PrimaryStorageDownloadCommand"
    answered_by = PrimaryStorageDownloadAnswer
    url: Secret | None = None
    format: str | None = None
    accountId: int | None = None
    name: str | None = None
    localPath: str | None = None
    poolUuid: str | None = None
    poolId: int | None = None
    primaryPool: StorageFilerTO | None = None
    secondaryStorageUrl: Secret | None = None
    primaryStorageUrl: str | None = None


class CleanupSnapshotBackupCommand(WireCommand):
    """Of old versions."""

    java = f"{API}.CleanupSnapshotBackupCommand"
