"""What Hyper-V says no with, told by PowerShell's FullyQualifiedErrorId and by HRESULT: texts depend on the host's language.

HRESULTs: winerror.h of the Windows SDK; identifiers: what the cmdlets of the Hyper-V module put before their class name, and
`StorageAgent.*`, which our scripts throw. None of it has been compared with a host.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypervisors.contract import HandlerError, ImageLocked
from stores.errors import AccessDenied, AlreadyExists, NotFound, Retry, StorageError


class HypervFailure(HandlerError):
    """Hyper-V says no, and will say no again: `id` and `hresult` are its own, and are in the details too."""

    def __init__(self, message: str, *, id: str = "", hresult: int = 0, **details: object) -> None:  # noqa: A002
        super().__init__(message, id=id, hresult=f"{hresult:#010x}", **details)
        self.id = id
        self.hresult = hresult


class HypervBusy(HypervFailure):
    """Something else is going on there, or the host has no room for another call: the same again, later."""

    retry = Retry.YES


class HypervRefused(HypervFailure):
    """Somebody has to change the host first: space, rights, a module that is missing, a state of a machine."""

    retry = Retry.OPERATOR


_LOCKED = {
    0x80070020,  # ERROR_SHARING_VIOLATION
    0x80070021,  # ERROR_LOCK_VIOLATION
    0xC03A001E,  # ERROR_VIRTDISK_DISK_ALREADY_OWNED
    "ObjectInUse",
}
_MISSING = {
    0x80070002,  # ERROR_FILE_NOT_FOUND
    0x80070003,  # ERROR_PATH_NOT_FOUND
    "ObjectNotFound",
    "PathNotFound",
    "ItemNotFound",
    "StorageAgent.NoSuchMachine",
    "StorageAgent.NoSuchCheckpoint",
}
_TAKEN = {
    0x80070050,  # ERROR_FILE_EXISTS
    0x800700B7,  # ERROR_ALREADY_EXISTS
    "StorageAgent.DiskExists",
}
_DENIED = {
    0x80070005,  # E_ACCESSDENIED
    0x8007052E,  # ERROR_LOGON_FAILURE
    "AccessDenied",
    "UnauthorizedAccess",
    "PSSecurityException",
}
_BUSY = {
    0x800700AA,  # ERROR_BUSY
    0x80070015,  # ERROR_NOT_READY
    0x800705AA,  # ERROR_NO_SYSTEM_RESOURCES
    0x8007000E,  # E_OUTOFMEMORY
    0x800705B4,  # ERROR_TIMEOUT
    0x80070040,  # ERROR_NETNAME_DELETED: a share went away
    0x80070035,  # ERROR_BAD_NETPATH
    "StorageAgent.JobNotStarted",
    "PipelineStopped",
}
_OPERATOR = {
    0x80070027,  # ERROR_HANDLE_DISK_FULL
    0x80070070,  # ERROR_DISK_FULL
    0x8007045D,  # ERROR_IO_DEVICE
    0x80070013,  # ERROR_WRITE_PROTECT
    0xC03A001A,  # ERROR_VIRTUAL_DISK_LIMITATION: the file is sparse, compressed or encrypted
    "CommandNotFoundException",
    "StorageAgent.MachineNotUnique",
    "StorageAgent.MachineNotOff",
    "InvalidState",
}


def failure(problem: Mapping[str, Any], *, doing: str) -> StorageError:
    """The error for what a script answers with `ok` false, or for an error record of the same fields. The HRESULT decides if
    it is known here, the identifier otherwise.

    `ImageLocked`, `NotFound`, `AlreadyExists`, `AccessDenied`, or one of the above."""
    told = str(problem.get("id") or "")
    number = int(problem.get("hresult") or 0) & 0xFFFFFFFF
    said = str(problem.get("message") or "").strip()
    text = f"{doing}: Hyper-V answers {told or 'without an identifier'} ({number:#010x})" + (
        f": {said}" if said else ""
    )
    for key in (number, told.partition(",")[0]):
        if key in _LOCKED:
            return ImageLocked(text, id=told, hresult=f"{number:#010x}")
        if key in _MISSING:
            return NotFound(text, id=told, hresult=f"{number:#010x}")
        if key in _TAKEN:
            return AlreadyExists(text, id=told, hresult=f"{number:#010x}")
        if key in _DENIED:
            return AccessDenied(text, id=told, hresult=f"{number:#010x}")
        if key in _BUSY:
            return HypervBusy(text, id=told, hresult=number)
        if key in _OPERATOR:
            return HypervRefused(text, id=told, hresult=number)
    return HypervFailure(text, id=told, hresult=number)
