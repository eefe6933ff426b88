"""Templates and volumes registered from a URL: a copy in the background, and what is told of it meanwhile. Pure."""

from __future__ import annotations

from agent import commands
from agent.commands import Answer, Command, State
from agent.transports.cloudstack.commands_naming import downloaded, extension, file_name
from agent.transports.cloudstack.commands_route import text_of
from agent.transports.cloudstack.models_images import DownloadAnswer, DownloadCommand
from hypervisors.contract import OperationUnsupported
from stores.errors import InvalidReference
from stores.to import DataTO, ImageFormat, TemplateObjectTO, VolumeObjectTO


def copy_of(command: DownloadCommand) -> Command:
    """What the agent does for a DownloadCommand. `StorageError` where it cannot."""
    if command.auth is not None and command.auth.userName:
        raise OperationUnsupported("downloads that need a user and password are not supported")
    if command.proxy is not None and command.proxy.host:
        raise OperationUnsupported("downloads through a proxy are not supported")
    if command.url is None or command.store is None or not (command.installPath or "").strip("/"):
        raise InvalidReference("a download needs a url, a store and an installPath")
    source_store, name = downloaded(command.url)
    known = ImageFormat.__members__.get((command.format or "").upper())
    path = f"{(command.installPath or '').strip('/')}/{file_name(name, f'{command.id or 0}.{extension(known)}')}"
    source: DataTO
    destination: DataTO
    match command.resourceType:
        case "TEMPLATE":
            source = TemplateObjectTO(path=name, format=known, checksum=command.checksum, imageDataStore=source_store)
            destination = TemplateObjectTO(path=path, format=known, id=command.id, imageDataStore=command.store)
        case "VOLUME":
            source = VolumeObjectTO(path=name, format=known, dataStore=source_store)
            destination = VolumeObjectTO(path=path, format=known, id=command.id, dataStore=command.store)
        case other:
            raise OperationUnsupported(f"a download of a {other} is not supported; TEMPLATE and VOLUME are")
    return commands.Copy(source=source, destination=destination)


def told(command: DownloadCommand, answer: Answer) -> DownloadAnswer:
    """A download as it is now."""
    match answer.state:
        case State.SUCCEEDED:
            return _complete(command, answer)
        case State.ACCEPTED | State.RUNNING:
            return DownloadAnswer(
                result=True, jobId=answer.id, downloadStatus="DOWNLOAD_IN_PROGRESS", downloadPct=_percent(answer)
            )
        case State.CANCELLED:
            return DownloadAnswer(jobId=answer.id, downloadStatus="ABANDONED", details="the download was cancelled")
        case _:
            return failed(text_of(answer.error) if answer.error else "the download failed", answer.id)


def failed(text: str, job: str | None = None) -> DownloadAnswer:
    return DownloadAnswer(jobId=job, downloadStatus="DOWNLOAD_ERROR", errorString=text, details=text)


def _complete(command: DownloadCommand, answer: Answer) -> DownloadAnswer:
    data = answer.newData
    size = data.size if data is not None and data.type != "snapshot" else None
    physical = data.physicalSize if data is not None and data.type != "volume" else None
    return DownloadAnswer(
        result=True,
        jobId=answer.id,
        downloadStatus="DOWNLOADED",
        downloadPct=100,
        installPath=data.path if data else None,
        templateSize=size or 0,
        templatePhySicalSize=physical or size or 0,
        checkSum=command.checksum,  # it was compared with the bytes
    )


def _percent(answer: Answer) -> int:
    progress = answer.progress
    if progress is None or not progress.total:
        return 0
    return min(99, 100 * progress.bytes // progress.total)
