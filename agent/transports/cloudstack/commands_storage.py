"""Volumes, templates and snapshots: CloudStack's many copies are the agent's one, chosen by what data is and where. Pure."""

from __future__ import annotations

from agent import commands
from agent.commands import Answer, Command, Failure
from agent.transports.cloudstack.commands_naming import (
    Purpose,
    deep_enough,
    downloaded,
    hypervisor_of,
    placed,
    pool_of,
    purpose_of,
)
from agent.transports.cloudstack.commands_route import Route, text_of
from agent.transports.cloudstack.models import WireAnswer, WireCommand
from agent.transports.cloudstack.models_objects import Made, SnapshotMade, TemplateMade, VolumeMade
from agent.transports.cloudstack.models_storage import (
    CopyCmdAnswer,
    CopyCommand,
    CreateObjectAnswer,
    CreateObjectCommand,
    DeleteCommand,
    DirectDownloadAnswer,
    DirectDownloadCommand,
    HttpDirectDownloadCommand,
    HttpsDirectDownloadCommand,
    MigrateVolumeAnswer,
    MigrateVolumeCommand,
    NfsDirectDownloadCommand,
    PrimaryStorageDownloadAnswer,
    PrimaryStorageDownloadCommand,
    ResizeVolumeAnswer,
    ResizeVolumeCommand,
    RevertSnapshotCommand,
)
from hypervisors.contract import OperationUnsupported
from stores.errors import InvalidReference
from stores.secret import Secret
from stores.to import DataTO, ImageFormat, NfsTO, TemplateObjectTO, VolumeObjectTO

TEMPLATE_GONE = "request template reload"
"""Details of a clone that failed since the pool does not have the template: the server copies it there and tries again."""
_FULL = "fullSnapshot"
"""The option of a backup whose value `true` means that it builds on no other."""
_KEEP_PRIMARY = "snapshot.backup.to.secondary"
"""The option of a backup whose value `false` means that the snapshot stays on primary storage as well."""


def made(data: DataTO | None) -> Made | None:
    """What an answer says of new data."""
    if data is None:
        return None
    image_format = data.format.value if data.format else None
    match data.type:
        case "template":
            return TemplateMade(
                path=data.path,
                name=data.name,
                uuid=data.uuid,
                size=data.size,
                physicalSize=data.physicalSize,
                format=image_format,
            )
        case "volume":
            return VolumeMade(
                path=data.path,
                name=data.name,
                uuid=data.uuid,
                size=data.size,
                format=image_format,
                encryptFormat=data.encryptFormat,
            )
        case "snapshot":
            return SnapshotMade(
                path=data.path,
                name=data.name,
                physicalSize=data.physicalSize,
                parentSnapshotPath=data.parentSnapshotPath,
            )


# ------------------------------------------------------------------------------------------------------------- copy


def _copies(command: CopyCommand) -> bool:
    """Whether it is one of the copies that there are. Of templates, volumes and snapshots (T, V, S): an image to primary
    storage; T or V within primary storage; a volume, or a snapshot, to V, T or S; anything between image stores."""
    source, destination = command.srcTO, command.destTO
    kinds = (source.type, destination.type)
    match purpose_of(source.store), purpose_of(destination.store):
        case Purpose.IMAGE, Purpose.PRIMARY:
            return kinds[1] != "snapshot"
        case Purpose.PRIMARY, Purpose.PRIMARY:
            return kinds[1] != "snapshot" and kinds != ("volume", "template")
        case Purpose.PRIMARY, Purpose.IMAGE:
            return kinds in {
                ("volume", "volume"),
                ("volume", "template"),
                ("snapshot", "snapshot"),
                ("snapshot", "template"),
            }
        case _:
            return kinds[0] == kinds[1] or kinds == ("snapshot", "template")


def _copy(command: CopyCommand) -> Command:
    if not _copies(command):
        source, destination = command.srcTO, command.destTO
        raise OperationUnsupported(
            f"there is no copy of a {source.type} on {purpose_of(source.store)} storage to a {destination.type} on"
            f" {purpose_of(destination.store)} storage"
        )
    destination = placed(command.srcTO, command.destTO)
    if destination.type == "snapshot" and _option(command, _FULL) == "true":
        destination = destination.model_copy(update={"parents": None, "parentSnapshotPath": None})
    hypervisor = hypervisor_of(command.srcTO, command.destTO)
    return commands.Copy(source=command.srcTO, destination=destination, hypervisorType=hypervisor)


def _option(command: CopyCommand, name: str) -> str:
    return command.options.get(name, Secret("")).reveal().lower()


def _copied(command: CopyCommand, answer: Answer) -> WireAnswer:
    return CopyCmdAnswer(result=True, details=answer.details, newData=made(answer.newData))


def _not_copied(command: CopyCommand, error: Failure) -> WireAnswer:
    source, destination = command.srcTO, command.destTO
    within = purpose_of(source.store) is purpose_of(destination.store) is Purpose.PRIMARY
    if error.kind == "NotFound" and within and source.type == "template":
        return CopyCmdAnswer(details=TEMPLATE_GONE)
    return CopyCmdAnswer(details=text_of(error))


def _backed_up(command: CopyCommand, answer: Answer) -> Command | None:
    """A backed-up snapshot goes from primary storage, unless the server wants to keep it there. Only after a success."""
    source, destination = command.srcTO, command.destTO
    moved = (source.type, destination.type) == ("snapshot", "snapshot") and purpose_of(source.store) is Purpose.PRIMARY
    return commands.Delete(data=source) if moved and _option(command, _KEEP_PRIMARY) != "false" else None


# ------------------------------------------------------------------------------------------------- create and delete


def _create(command: CreateObjectCommand) -> Command:
    if command.data.type == "template":
        raise OperationUnsupported("only volumes and snapshots are created, not templates")
    return commands.CreateObject(data=command.data)


def _created(command: CreateObjectCommand, answer: Answer) -> WireAnswer:
    return CreateObjectAnswer(result=True, data=made(answer.data))


def _delete(command: DeleteCommand) -> Command:
    """Exactly what is named: nothing whose name only begins so. A backup that others build on is made one that they need not,
    since the server counts every backup of a KVM host as whole."""
    data = command.data
    if purpose_of(data.store) is Purpose.PRIMARY:
        return commands.Delete(data=data)
    return commands.Delete(data=deep_enough(data), merge=data.type == "snapshot")


def _revert(command: RevertSnapshotCommand) -> Command:
    snapshot = command.data or command.dataOnPrimaryStorage
    if snapshot is None:
        raise InvalidReference("to revert a volume, its snapshot is needed")
    return commands.RevertSnapshot(data=snapshot, dataOnPrimaryStorage=command.dataOnPrimaryStorage)


def done(command: WireCommand, answer: Answer) -> WireAnswer:
    """A success that has nothing to say."""
    return command.answered_by(result=True, details=answer.details)


# ----------------------------------------------------------------------------------------------------------- volumes


def _resize(command: ResizeVolumeCommand) -> Command:
    return commands.ResizeVolume(
        path=command.path,
        pool=pool_of(command.pool),
        newSize=command.newSize,
        shrinkOk=command.shrinkOk,
        passphrase=command.passphrase,
        encryptFormat=command.encryptFormat,
    )


def _resized(command: ResizeVolumeCommand, answer: Answer) -> WireAnswer:
    return ResizeVolumeAnswer(result=True, newSize=answer.newSize or command.newSize)


def _migrate(command: MigrateVolumeCommand) -> Command:
    """With its guest, where one runs with it: which that is, the hypervisor knows."""
    source, destination = command.srcData, command.destData
    if source is None or destination is None:
        if command.volumePath is None or command.sourcePool is None or command.pool is None:
            raise InvalidReference("a volume to be moved needs its path, the pool it is in and the one it goes to")
        source = VolumeObjectTO(path=command.volumePath, dataStore=pool_of(command.sourcePool))
        destination = VolumeObjectTO(path=command.volumePath, dataStore=pool_of(command.pool))
    if source.type != "volume" or destination.type != "volume":
        raise InvalidReference("only volumes are moved")
    return commands.MigrateVolume(source=source, destination=destination)


def _migrated(command: MigrateVolumeCommand, answer: Answer) -> WireAnswer:
    path = answer.newData.path if answer.newData is not None else None
    return MigrateVolumeAnswer(result=True, volumePath=path, volumeChain=command.chainInfo)


# ---------------------------------------------------------------------------------------- templates straight to a pool


def _direct(command: DirectDownloadCommand) -> Command:
    if command.headers:
        raise OperationUnsupported("direct downloads with headers of their own are not supported")
    store, name = downloaded(command.url)
    known = ImageFormat.__members__.get((command.format or "").upper())
    source = TemplateObjectTO(path=name, format=known, checksum=command.checksum, imageDataStore=store)
    data = command.destData
    destination = TemplateObjectTO(
        path=data.path if data else None,
        uuid=(data and data.uuid) or f"template-{command.templateId or name}",
        format=data.format if data else known,
        imageDataStore=command.destPool,
    )
    return commands.Copy(source=source, destination=destination)


def _downloaded(command: DirectDownloadCommand, answer: Answer) -> WireAnswer:
    data = made(answer.newData)
    return DirectDownloadAnswer(
        result=True, templateSize=getattr(data, "size", None), installPath=data.path if data else None
    )


def _not_downloaded(command: DirectDownloadCommand, error: Failure) -> WireAnswer:
    return DirectDownloadAnswer(details=text_of(error), retryOnOtherHosts=error.retryable != "no")


def _from_secondary(command: PrimaryStorageDownloadCommand) -> Command:
    store, url = command.secondaryStorageUrl, command.url
    if store is None or url is None or command.primaryPool is None or not command.name:
        raise InvalidReference("a download needs a name, a url, secondaryStorageUrl and primaryPool")
    if not url.reveal().startswith(store.reveal()):
        raise InvalidReference("the url of a template needs to begin with that of its secondary storage")
    path = url.reveal().removeprefix(store.reveal()).strip("/")
    source = TemplateObjectTO(path=path, imageDataStore=NfsTO.model_validate({"_url": store}))
    return commands.Copy(
        source=source, destination=TemplateObjectTO(path=command.name, imageDataStore=pool_of(command.primaryPool))
    )


def _from_secondary_told(command: PrimaryStorageDownloadCommand, answer: Answer) -> WireAnswer:
    data = made(answer.newData)
    return PrimaryStorageDownloadAnswer(
        result=True, installPath=data.path if data else None, templateSize=getattr(data, "physicalSize", None) or 0
    )


_DIRECT = Route(_direct, _downloaded, _not_downloaded)

ROUTES: dict[type[WireCommand], Route] = {
    CopyCommand: Route(_copy, _copied, _not_copied, _backed_up),
    CreateObjectCommand: Route(_create, _created),
    DeleteCommand: Route(_delete, done),
    RevertSnapshotCommand: Route(_revert, done),
    ResizeVolumeCommand: Route(_resize, _resized),
    MigrateVolumeCommand: Route(_migrate, _migrated),
    HttpDirectDownloadCommand: _DIRECT,
    HttpsDirectDownloadCommand: _DIRECT,
    NfsDirectDownloadCommand: _DIRECT,
    PrimaryStorageDownloadCommand: Route(_from_secondary, _from_secondary_told),
}
