"""What XAPI says no with: codes and parameters, sorted by what a retry would do.

Codes: datamodel_errors.ml of xen-api and XE_SR_ERRORCODES.xml of its storage manager. Whether a transport failed is told
by the store's errors (`Unavailable`, `TlsFailed`, `AccessDenied`), as everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from hypervisors.contract import HandlerError, ImageLocked
from stores.errors import AccessDenied, NotFound, Retry, StorageError

SESSION_INVALID = "SESSION_INVALID"
HOST_IS_SLAVE = "HOST_IS_SLAVE"
HANDLE_INVALID = "HANDLE_INVALID"
UUID_INVALID = "UUID_INVALID"
MAP_DUPLICATE_KEY = "MAP_DUPLICATE_KEY"
TASK_CANCELLED = "TASK_CANCELLED"

NO_SPACE = frozenset({"SR_BACKEND_FAILURE_44", "SR_FULL"})
_IN_USE = frozenset({"VDI_IN_USE", "OTHER_OPERATION_IN_PROGRESS", "SR_BACKEND_FAILURE_24"})


class XapiFailure(HandlerError):
    """XAPI says no, and will say no again: `code` and `params` are XAPI's, and are in the details too."""

    def __init__(self, message: str, *, code: str = "", params: Sequence[str] = (), **details: object) -> None:
        super().__init__(message, code=code, params=list(params), **details)
        self.code = code
        self.params = tuple(params)


class XapiBusy(XapiFailure):
    """Something else is going on with that object, or in the pool: the same again, later."""

    retry = Retry.YES


class XapiRefused(XapiFailure):
    """Somebody has to change the pool first: space, storage that is not plugged, rights, licences."""

    retry = Retry.OPERATOR


_BUSY = {
    "OTHER_OPERATION_IN_PROGRESS",
    "VDI_IN_USE",
    "TASK_CANCELLED",
    "TOO_MANY_PENDING_TASKS",
    "TOO_BUSY",
    "HOST_STILL_BOOTING",
    "HOST_OFFLINE",
    "HOST_IS_SLAVE",
    "SESSION_INVALID",
    "VDI_IO_ERROR",
    "SR_BACKEND_FAILURE_24",  # the VDI is in use
}
_OPERATOR = {
    "SR_BACKEND_FAILURE_44",  # no space
    "SR_BACKEND_FAILURE_46",  # the VDI is not available
    "SR_BACKEND_FAILURE_47",  # the SR is not available
    "SR_BACKEND_FAILURE_73",  # NFS cannot be mounted
    "SR_BACKEND_FAILURE_109",  # the chain of snapshots is too long
    "SR_BACKEND_FAILURE_200",  # input or output failed
    "SR_BACKEND_FAILURE_222",  # an ISO repository cannot be mounted
    "SR_FULL",
    "SR_NO_PBDS",
    "HOST_DISABLED",
    "LICENCE_RESTRICTION",
    "FEATURE_RESTRICTED",
    "RBAC_PERMISSION_DENIED",
}


def failure(code: str, params: Sequence[object], *, doing: str) -> StorageError:
    """The error for XAPI's `code` and `params`, which came of `doing` (a method, a transfer)."""
    if code == "SESSION_AUTHENTICATION_FAILED":
        return AccessDenied("XAPI refuses the configured user or password; correct the credentials", code=code)
    # The parameter of SESSION_INVALID is the session's reference, with which anybody could go on with it.
    told = [] if code == SESSION_INVALID else [str(param) for param in params]
    sort = XapiBusy if code in _BUSY else XapiRefused if code in _OPERATOR else XapiFailure
    said = ", ".join(param for param in told if param)
    return sort(f"{doing}: XAPI answers {code}" + (f" ({said})" if said else ""), code=code, params=told)


def of_disk(problem: XapiFailure, ref: str) -> StorageError:
    """What `problem` with the disk `ref` is to whoever knows stores; itself where it is no more than XAPI's."""
    if problem.code in _IN_USE:
        return ImageLocked(
            f"{ref} is in use: {problem.message}; try again when it is not",
            ref=ref,
            code=problem.code,
            params=problem.params,
        )
    if problem.code in (HANDLE_INVALID, UUID_INVALID) and problem.params[:1] == ("VDI",):
        return NotFound(f"there is no disk {ref} any more", ref=ref)
    return problem
