"""Commands that a secondary storage VM is sent, and their answers: image stores, downloads, uploads, listings."""

from __future__ import annotations

from pydantic import Field

from agent.transports.cloudstack.models import API, API_STORAGE, STORAGE, WireAnswer, WireCommand, WireObject
from stores.secret import Secret
from stores.to import DataStoreTO


class TemplateProp(WireObject):
    """com.cloud.storage.template.TemplateProp: a template or volume that an image store has."""

    templateName: str | None = None
    installPath: str | None = None
    size: int = 0
    physicalSize: int = 0
    id: int = 0
    isPublic: bool = False
    isCorrupted: bool = False


# -------------------------------------------------------------------------------------------------- image stores


class SecStorageSetupAnswer(WireAnswer):
    java = f"{API}.SecStorageSetupAnswer"
    directory: str | None = Field(default=None, alias="_dir")


class Certificates(WireObject):
    """What a secondary storage VM would serve its downloads over TLS with. PEM texts."""

    privKey: Secret | None = None
    privCert: str | None = None
    certChain: str | None = None
    rootCACert: str | None = None


class SecStorageSetupCommand(WireCommand):
    """Make the store usable. Nothing is served here, so the certificates and the key of post uploads have no use."""

    java = f"{API}.SecStorageSetupCommand"
    answered_by = SecStorageSetupAnswer
    store: DataStoreTO
    secUrl: Secret | None = None
    certs: Certificates | None = None
    postUploadKey: Secret | None = None
    nfsVersion: str | None = None


class ComputeChecksumCommand(WireCommand):
    """The digest in hex is the answer's `details`."""

    java = f"{API}.ComputeChecksumCommand"
    store: DataStoreTO
    templatePath: str
    algorithm: str = "MD5"


class DeleteSnapshotsDirCommand(WireCommand):
    java = f"{API}.DeleteSnapshotsDirCommand"
    store: DataStoreTO
    directory: str


class MoveVolumeCommand(WireCommand):
    java = f"{STORAGE}.MoveVolumeCommand"
    volumeUuid: str | None = None
    volumeName: str | None = None
    datastoreUri: Secret | None = None
    srcPath: str | None = None
    destPath: str | None = None


class ListTemplateAnswer(WireAnswer):
    """`templateInfos` by unique name."""

    java = f"{API_STORAGE}.ListTemplateAnswer"
    secUrl: Secret | None = None
    templateInfos: dict[str, TemplateProp] = Field(default={})


class ListTemplateCommand(WireCommand):
    java = f"{API_STORAGE}.ListTemplateCommand"
    answered_by = ListTemplateAnswer
    store: DataStoreTO
    secUrl: Secret | None = None
    nfsVersion: str | None = None


class ListVolumeAnswer(WireAnswer):
    """`templateInfos` by the volume's id."""

    java = f"{API_STORAGE}.ListVolumeAnswer"
    secUrl: Secret | None = None
    templateInfos: dict[str, TemplateProp] = Field(default={})


class ListVolumeCommand(WireCommand):
    java = f"{API_STORAGE}.ListVolumeCommand"
    answered_by = ListVolumeAnswer
    store: DataStoreTO
    secUrl: Secret | None = None


class ListDataStoreObjectsAnswer(WireAnswer):
    """Parallel lists. `lastModified` in milliseconds since the epoch."""

    java = f"{STORAGE}.browser.ListDataStoreObjectsAnswer"
    pathExists: bool = False
    count: int = 0
    names: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    absPaths: tuple[str, ...] = ()
    isDirs: tuple[bool, ...] = ()
    sizes: tuple[int, ...] = ()
    lastModified: tuple[int, ...] = ()


class ListDataStoreObjectsCommand(WireCommand):
    java = f"{STORAGE}.browser.ListDataStoreObjectsCommand"
    answered_by = ListDataStoreObjectsAnswer
    store: DataStoreTO
    path: str = ""
    startIndex: int = 0
    pageSize: int = 0


# ----------------------------------------------------------------------------------------- downloads and uploads


class DownloadAnswer(WireAnswer):
    """Of a download as it is now. `templateSize` is the virtual size; the other one is spelt as on the wire."""

    java = f"{API_STORAGE}.DownloadAnswer"
    jobId: str | None = None
    downloadPct: int = 0
    errorString: str | None = None
    downloadStatus: str = "UNKNOWN"
    downloadPath: str | None = None
    installPath: str | None = None
    templateSize: int = 0
    templatePhySicalSize: int = 0
    checkSum: str | None = None


class DownloadAuth(WireObject):
    userName: str | None = None
    password: Secret | None = None


class DownloadProxy(WireObject):
    host: str | None = Field(default=None, alias="_host")
    port: int = Field(default=0, alias="_port")
    userName: str | None = Field(default=None, alias="_userName")
    password: Secret | None = Field(default=None, alias="_password")


class DownloadCommand(WireCommand):
    """Bring what a URL has into the image store. Answered at once; the rest is asked for with DownloadProgressCommand."""

    java = f"{STORAGE}.DownloadCommand"
    answered_by = DownloadAnswer
    url: Secret | None = None
    format: str | None = None
    accountId: int | None = None
    name: str | None = None
    secUrl: Secret | None = None
    hvm: bool = False
    description: str | None = None
    checksum: str | None = None
    auth: DownloadAuth | None = None
    proxy: DownloadProxy | None = Field(default=None, alias="_proxy")
    maxDownloadSizeInBytes: int | None = None
    id: int | None = None
    resourceType: str = "TEMPLATE"
    installPath: str | None = None
    store: DataStoreTO | None = Field(default=None, alias="_store")
    cacheStore: DataStoreTO | None = None
    followRedirects: bool = False


class DownloadProgressCommand(DownloadCommand):
    """`request`: GET_STATUS, ABORT, RESTART, PURGE or GET_OR_RESTART."""

    java = f"{STORAGE}.DownloadProgressCommand"
    jobId: str | None = None
    request: str = "GET_STATUS"


class UploadStatusAnswer(WireAnswer):
    java = f"{STORAGE}.UploadStatusAnswer"
    status: str = "UNKNOWN"
    virtualSize: int = 0
    physicalSize: int = 0
    installPath: str | None = None
    downloadPercent: int = 0


class UploadStatusCommand(WireCommand):
    """How far a browser's upload to the secondary storage VM is."""

    java = f"{STORAGE}.UploadStatusCommand"
    answered_by = UploadStatusAnswer
    entityUuid: str | None = None
    entityType: str | None = None
    abort: bool = False
