"""CloudStack's transfer objects: what data is (`DataTO`) and where it lives (`DataStoreTO`).

Field names are CloudStack's wire names (classes of `org.apache.cloudstack.storage.to` and `com.cloud.agent.api.to`);
fields that we do not know are ignored, as gson does. In plain JSON a datum says what it is by `type` and a store by
`storeType` (`type` is taken: `PrimaryDataStoreTO` and `ImageStoreTO` carry a wire field of that name). Sizes are bytes.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator

from stores.secret import Secret


class ImageFormat(StrEnum):
    """com.cloud.storage.Storage.ImageFormat, as far as an agent can meet it."""

    QCOW2 = "QCOW2"
    RAW = "RAW"
    VHD = "VHD"
    VHDX = "VHDX"
    VMDK = "VMDK"
    ISO = "ISO"
    OVA = "OVA"
    VDI = "VDI"
    TAR = "TAR"
    DIR = "DIR"
    BAREMETAL = "BAREMETAL"


class ProvisioningType(StrEnum):
    THIN = "THIN"
    SPARSE = "SPARSE"
    FAT = "FAT"


class DataStoreRole(StrEnum):
    PRIMARY = "Primary"
    IMAGE = "Image"
    IMAGE_CACHE = "ImageCache"
    BACKUP = "Backup"
    OBJECT = "Object"


class TransferObject(BaseModel):
    """Common to all: unknown fields are ignored, values do not change, and null means absent."""

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True, hide_input_in_errors=True)


# ------------------------------------------------------------------------------------------------ DataStoreTO


class S3TO(TransferObject):
    """com.cloud.agent.api.to.S3TO. Always an image store: there is no role on the wire."""

    storeType: Literal["s3"] = "s3"
    id: int | None = None
    uuid: str | None = None
    accessKey: str | None = None
    secretKey: Secret | None = None
    endPoint: str | None = None  # may lack a scheme; then `httpsFlag` decides, and its default is https
    bucketName: str
    signer: str | None = None  # an AWS SDK v1 signer name; only SigV4 is spoken, the SigV2 name is refused
    region: str | None = None  # not a CloudStack field; default: us-east-1
    pathStyle: bool | None = None  # not a CloudStack field; default: path style whenever endPoint is set
    httpsFlag: bool | None = None
    useTCPKeepAlive: bool | None = None
    connectionTimeout: int | None = None  # ms
    maxErrorRetry: int | None = None
    socketTimeout: int | None = None  # ms
    connectionTtl: int | None = None  # ms
    enableRRS: bool | None = None
    maxSingleUploadSizeInBytes: int | None = None  # < 0: always one PUT; 0: always multipart; else the threshold


class NfsTO(TransferObject):
    """com.cloud.agent.api.to.NfsTO: `nfs://host/export`, or SMB as `cifs://host/share?user=..&password=..`.

    The whole URL is a secret, since an SMB password travels in its query.
    """

    storeType: Literal["nfs"] = "nfs"
    url: Secret = Field(alias="_url")
    role: DataStoreRole = Field(default=DataStoreRole.IMAGE, alias="_role")
    uuid: str | None = None
    nfsVersion: str | None = None


class SwiftTO(TransferObject):
    """com.cloud.agent.api.to.SwiftTO. Always an image store."""

    storeType: Literal["swift"] = "swift"
    id: int | None = None
    url: str  # of the authentication service: version 1, or Keystone's version 3 if it ends in /v3
    account: str | None = None  # with Keystone the project
    userName: str | None = None
    key: Secret | None = None
    storagePolicy: str | None = None  # of the container, where it has to be made
    container: str | None = None  # not a CloudStack field; default: storage-agent
    domain: str | None = None  # not a CloudStack field; of user and project with Keystone, default: Default
    region: str | None = None  # not a CloudStack field; with Keystone, default: the first that is named


class PrimaryDataStoreTO(TransferObject):
    """org.apache.cloudstack.storage.to.PrimaryDataStoreTO: a storage pool of hypervisors.

    `poolType` is an open set (`Filesystem`, `NetworkFilesystem`, `SharedMountPoint`, `RBD`, ...), so a plain string.
    Values of `details` may be CHAP secrets and are therefore all treated as such.
    """

    storeType: Literal["primary"] = "primary"
    uuid: str
    name: str | None = None
    type: str | None = None
    id: int | None = None
    poolType: str
    host: str | None = None
    path: str | None = None
    port: int | None = None
    url: str | None = None
    details: dict[str, Secret] | None = None
    fullCloneFlag: bool | None = None
    isManaged: bool | None = None


class ImageStoreTO(TransferObject):
    """org.apache.cloudstack.storage.to.ImageStoreTO: an image store known by a URI alone.

    Here: `http(s)://host/base` (read-only) and `file:///directory`.
    """

    storeType: Literal["image"] = "image"
    type: str | None = None
    uri: Secret  # may carry user information; shown only after that was cut off
    providerName: str | None = None
    role: DataStoreRole | None = None
    uuid: str | None = None


DataStoreTO: TypeAlias = Annotated[
    S3TO | NfsTO | SwiftTO | PrimaryDataStoreTO | ImageStoreTO, Field(discriminator="storeType")
]

# ----------------------------------------------------------------------------------------------------- DataTO


class _DataTO(TransferObject):
    path: str | None = None
    name: str | None = None
    uuid: str | None = None
    id: int | None = None
    accountId: int | None = None
    hypervisorType: str | None = None
    format: ImageFormat | None = None

    @field_validator("format", mode="before")
    @classmethod
    def _format_case(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value


class TemplateObjectTO(_DataTO):
    """org.apache.cloudstack.storage.to.TemplateObjectTO; also used for ISOs."""

    type: Literal["template"] = "template"
    imageDataStore: DataStoreTO  # named so even when it is primary storage
    origUrl: str | None = None
    checksum: str | None = None  # `{ALG}hex` or a bare MD5 in hex
    hvm: bool | None = None
    displayText: str | None = None
    guestOsType: str | None = None
    size: int | None = None  # virtual
    physicalSize: int | None = None
    bootable: bool | None = None
    uniqueName: str | None = None
    directDownload: bool | None = None
    deployAsIs: bool | None = None
    followRedirects: bool | None = None

    @property
    def store(self) -> DataStoreTO:
        return self.imageDataStore


class VolumeObjectTO(_DataTO):
    """org.apache.cloudstack.storage.to.VolumeObjectTO."""

    type: Literal["volume"] = "volume"
    dataStore: DataStoreTO
    volumeType: str | None = None
    size: int | None = None  # virtual
    volumeId: int | None = None
    vmName: str | None = None
    chainInfo: str | None = None
    provisioningType: ProvisioningType | None = None
    poolId: int | None = None
    deviceId: int | None = None
    bytesReadRate: int | None = None
    bytesWriteRate: int | None = None
    iopsReadRate: int | None = None
    iopsWriteRate: int | None = None
    cacheMode: str | None = None
    directDownload: bool | None = None
    deployAsIs: bool | None = None
    passphrase: Secret | None = None
    encryptFormat: str | None = None

    @property
    def store(self) -> DataStoreTO:
        return self.dataStore


class SnapshotObjectTO(_DataTO):
    """org.apache.cloudstack.storage.to.SnapshotObjectTO."""

    type: Literal["snapshot"] = "snapshot"
    dataStore: DataStoreTO
    volume: VolumeObjectTO | None = None
    parentSnapshotPath: str | None = None
    vmName: str | None = None
    quiescevm: bool | None = None
    parents: list[str] | None = None  # oldest first
    physicalSize: int | None = None

    @property
    def store(self) -> DataStoreTO:
        return self.dataStore


DataTO: TypeAlias = Annotated[TemplateObjectTO | VolumeObjectTO | SnapshotObjectTO, Field(discriminator="type")]


class DiskTO(TransferObject):
    """com.cloud.agent.api.to.DiskTO: something attached to a guest. `type` is a com.cloud.storage.Volume.Type."""

    data: DataTO
    diskSeq: int | None = None
    path: str | None = None
    type: str
