"""Commands that are understood and cannot be done by this agent: the right class of answer, no success, and why."""

from __future__ import annotations

from agent.transports.cloudstack.commands_route import failure
from agent.transports.cloudstack.models import UnsupportedAnswer, WireAnswer, WireCommand
from agent.transports.cloudstack.models_images import MoveVolumeCommand, UploadStatusAnswer, UploadStatusCommand
from agent.transports.cloudstack.models_storage import (
    CheckDataStoreStoragePolicyComplainceCommand,
    CheckDataStoreStoragePolicyComplianceCommand,
    CheckUrlCommand,
    CleanupSnapshotBackupCommand,
    MetalinkDirectDownloadCommand,
    ResignatureCommand,
    SnapshotAndCopyCommand,
    SyncVolumePathCommand,
)

_MANAGED = "managed storage is not supported by this agent"

REFUSED: dict[type[WireCommand], str] = {
    SyncVolumePathCommand: "what path a guest uses is not known here",
    SnapshotAndCopyCommand: _MANAGED,
    ResignatureCommand: _MANAGED,
    CheckDataStoreStoragePolicyComplianceCommand: "pools of this agent have no storage policies",
    CheckDataStoreStoragePolicyComplainceCommand: "pools of this agent have no storage policies",
    MetalinkDirectDownloadCommand: "metalinks are not supported; use the URL of the file itself",
    CheckUrlCommand: "URLs are not tried in advance by this agent; a download finds out",
    MoveVolumeCommand: "volumes are not moved within image stores by this agent; copy and delete instead",
    CleanupSnapshotBackupCommand: "backups are only deleted one by one",
}


def refused(command: WireCommand) -> WireAnswer | None:
    """The answer to one of those, None for any other command."""
    reason = REFUSED.get(type(command))
    return failure(command, reason) if reason is not None else None


def upload_status(command: UploadStatusCommand) -> WireAnswer:
    """Browsers cannot upload to this agent, so there is no upload that it knows."""
    text = "nobody uploads to this agent: no such upload is known"
    return UploadStatusAnswer(result=False, details=text, status="UNKNOWN")


def unsupported(java: str, role: str) -> WireAnswer:
    """For a command that is not known at all, or not one for this role."""
    return UnsupportedAnswer(result=False, details=f"a {java} is not supported by this agent as {role}")
