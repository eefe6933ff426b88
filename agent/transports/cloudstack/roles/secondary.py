"""The role of a secondary storage VM: image stores are set up, listed and measured, downloads run, copies are made."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ValidationError

from agent import commands
from agent.failures import tell
from agent.transports.cloudstack import commands_listings, commands_storage, commands_stores
from agent.transports.cloudstack.commands_desk import Desk
from agent.transports.cloudstack.commands_downloads import copy_of, failed, told
from agent.transports.cloudstack.commands_refused import refused, unsupported, upload_status
from agent.transports.cloudstack.commands_route import Route, failure, text_of
from agent.transports.cloudstack.models import WireAnswer, WireCommand
from agent.transports.cloudstack.models_images import (
    DownloadCommand,
    DownloadProgressCommand,
    ListTemplateAnswer,
    ListTemplateCommand,
    ListVolumeAnswer,
    ListVolumeCommand,
    UploadStatusCommand,
)
from agent.transports.cloudstack.models_session import (
    PingCommand,
    PingStorageCommand,
    StartupCommand,
    StartupSecondaryStorageCommand,
)
from agent.transports.cloudstack.models_storage import CopyCommand, DeleteCommand
from agent.transports.cloudstack.roles.host import interface_of
from agent.transports.cloudstack.roles.identity import PROTOCOL, Identity
from hypervisors.contract import OperationUnsupported
from stores.errors import StorageError
from stores.to import DataStoreTO

_RESOURCE = "NfsSecondaryStorageResource"
_PAGE = 10_000
_NOT_KNOWN = "no download of that job is known here; ask for it again"


class SecondaryRole:
    """One link's."""

    name = "SecondaryStorage"

    def __init__(self, identity: Identity, desk: Desk) -> None:
        self._identity = identity
        self._desk = desk
        kinds: tuple[type[WireCommand], ...] = (CopyCommand, DeleteCommand)
        self._routes: dict[type[WireCommand], Route] = {
            **{kind: commands_storage.ROUTES[kind] for kind in kinds},
            **commands_stores.STORES,
        }

    def introduction(self, local_address: str) -> Sequence[StartupCommand]:
        identity, device = self._identity, interface_of(local_address)
        return [
            StartupSecondaryStorageCommand(
                guid=identity.resource_guid(_RESOURCE),
                resourceName=_RESOURCE,
                name=identity.name,
                dataCenter=identity.zone,
                pod=identity.pod,
                version=PROTOCOL,
                iqn="NoIqn",
                publicIpAddress=device.address,
                publicNetmask=device.netmask,
                publicMacAddress=device.mac,
                privateIpAddress=device.address,
                privateNetmask=device.netmask,
                privateMacAddress=device.mac,
                storageIpAddress=device.address,
                storageNetmask=device.netmask,
                storageMacAddress=device.mac,
            )
        ]

    def ping(self, host_id: int) -> PingCommand:
        return PingStorageCommand(hostId=host_id)

    async def execute(self, command: WireCommand, *, within_s: float) -> WireAnswer:
        """The answer in its own class. Cancelled, it leaves nothing behind (`Desk.serve`), except that a download goes on
        until it is aborted by its own command."""
        try:
            match command:
                case DownloadProgressCommand():
                    return await self._progress(command)
                case DownloadCommand():
                    return await self._download(command)
                case UploadStatusCommand():
                    return upload_status(command)
                case ListTemplateCommand():
                    found = await self._objects(command.store, commands_listings.TEMPLATES, within_s)
                    return ListTemplateAnswer(result=True, templateInfos=commands_listings.templates(found))
                case ListVolumeCommand():
                    found = await self._objects(command.store, commands_listings.VOLUMES, within_s)
                    return ListVolumeAnswer(result=True, templateInfos=commands_listings.volumes(found))
        except (StorageError, ValidationError) as error:
            return failure(command, text_of(tell(error).failure))
        route = self._routes.get(type(command))
        if route is None:
            return refused(command) or unsupported(command.java, self.name)
        return await self._desk.serve(route, command, within_s=within_s)

    async def _download(self, command: DownloadCommand, *, again: bool = False) -> WireAnswer:
        try:
            return told(command, await self._desk.download(copy_of(command), again=again))
        except (StorageError, ValidationError) as error:
            return failed(text_of(tell(error).failure))

    async def _progress(self, command: DownloadProgressCommand) -> WireAnswer:
        match command.request:
            case "ABORT":
                answer = await self._desk.abandon(command.jobId)
            case "RESTART":
                await self._desk.abandon(command.jobId)
                return await self._download(command, again=True)
            case request:
                answer = await self._desk.look(command.jobId)
                if request == "GET_OR_RESTART" and (answer is None or answer.error is not None):
                    return await self._download(command)
        return told(command, answer) if answer is not None else failed(_NOT_KNOWN, command.jobId)

    async def _objects(self, store: DataStoreTO, path: str, within_s: float) -> list[tuple[str, int]]:
        """Every object below `path`, with its size. A half list would make the server fetch or delete what is not in it, so
        there is the whole or an error."""
        if store.storeType not in ("s3", "swift"):
            raise OperationUnsupported(
                "what is in a file system is described by template.properties, which are not read by this agent"
            )
        found: list[tuple[str, int]] = []
        while True:
            asked = commands.ListDataStoreObjects(
                store=store, path=path, startIndex=len(found), pageSize=_PAGE, recursive=True
            )
            answer = await self._desk.run(asked, within_s=within_s)
            if answer.error is not None:
                raise OperationUnsupported(text_of(answer.error))
            page = list(zip(answer.paths or (), answer.sizes or (), strict=True))
            found += page
            if not page or len(found) >= (answer.count or 0):
                return found
