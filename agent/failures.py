"""What goes wrong in the agent itself, and the one table from an exception to what a client is told."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from agent.commands import Failure
from hypervisors.backups.manifest import BackupDamaged, BrokenChain
from hypervisors.contract import ImageInUse, ImageLocked, ImageRefused, OperationUnsupported, SizeRefused
from hypervisors.guests import DeviceTaken, GuestHolds, GuestUnfit
from hypervisors.hyperv.errors import HypervBusy, HypervFailure
from hypervisors.xen.errors import XapiBusy, XapiFailure
from stores import errors
from stores.cache.errors import LeaseLost
from stores.cache.health import PoolSick
from stores.cache.writeback.errors import QueueDraining, UploadCancelled, UploadOver, UploadPending
from stores.errors import Retry, StorageError
from stores.tools.process import ToolTimeout

_log = structlog.get_logger(__name__)


class AgentError(StorageError):
    """Base of what the agent itself raises."""


class InvalidCommand(AgentError):
    """The command cannot be understood: details carry `problems`, each with its place."""


class UnknownCommand(AgentError):
    """No command of that id is known, or its record has been pruned."""


class IdReused(AgentError):
    """The id belongs to a command with other content. Nothing was run."""


class Overloaded(AgentError):
    """The queue is full. Nothing was accepted."""

    retry = Retry.YES


class Stopping(AgentError):
    """The agent is on its way out and accepts nothing."""

    retry = Retry.YES


class Draining(AgentError):
    """The agent is being emptied for maintenance and accepts nothing."""

    retry = Retry.YES


class DeadlineExceeded(AgentError):
    """The command did not end within its deadline and was undone."""

    retry = Retry.YES


class Cancelled(AgentError):
    """Somebody cancelled the command; it was undone."""

    retry = Retry.YES


class Interrupted(AgentError):
    """The agent stopped or died before the command ended; it was undone."""

    retry = Retry.YES


class NotUndone(AgentError):
    """The agent died in the middle of the command, and what that left could not be removed."""

    retry = Retry.OPERATOR


class JournalUnusable(AgentError):
    """The journal cannot be read or written, and without it nothing is run."""

    retry = Retry.OPERATOR


class JournalLocked(JournalUnusable):
    """Another process uses the journal."""


class EntryHeld(AgentError):
    """An entry of the cache may not go now: details carry `hold` and who pins it."""

    retry = Retry.YES


class Internal(AgentError):
    """Not foreseen. The log has the traceback under `incident`."""

    retry = Retry.OPERATOR


@dataclass(frozen=True, slots=True)
class Told:
    """What a client is told, and the HTTP status that goes with it when it is the answer to a request."""

    failure: Failure
    http_status: int


# The most specific class that fits decides.
_HTTP_STATUS: dict[type[StorageError], int] = {
    StorageError: 500,
    InvalidCommand: 422,
    UnknownCommand: 404,
    IdReused: 409,
    Overloaded: 503,
    Stopping: 503,
    Draining: 503,
    DeadlineExceeded: 504,
    Cancelled: 409,
    Interrupted: 503,
    NotUndone: 500,
    EntryHeld: 409,
    JournalUnusable: 503,
    Internal: 500,
    errors.NotFound: 404,
    errors.AlreadyExists: 409,
    errors.AccessDenied: 502,
    errors.TlsFailed: 502,
    errors.Unavailable: 503,
    errors.ObjectChanged: 409,
    errors.IntegrityError: 502,
    errors.NoSpace: 507,
    errors.TooLarge: 413,
    errors.InvalidReference: 400,
    errors.PolicyRefused: 403,
    errors.StoreUnsupported: 501,
    errors.RequirementNotMet: 409,
    errors.DeviceFault: 500,
    ImageInUse: 409,
    ImageLocked: 409,
    GuestHolds: 409,
    GuestUnfit: 409,
    DeviceTaken: 409,
    SizeRefused: 422,
    ToolTimeout: 504,
    XapiFailure: 502,
    XapiBusy: 503,
    HypervFailure: 502,
    HypervBusy: 503,
    errors.CacheFailure: 503,
    PoolSick: 503,
    LeaseLost: 503,
    UploadPending: 503,
    UploadCancelled: 409,
    UploadOver: 409,
    QueueDraining: 503,
    ImageRefused: 422,
    BrokenChain: 409,
    BackupDamaged: 502,
    OperationUnsupported: 501,
}


def http_status(error: type[StorageError]) -> int:
    return next(_HTTP_STATUS[cls] for cls in error.__mro__ if cls in _HTTP_STATUS)


def invalid(error: ValidationError) -> InvalidCommand:
    """What pydantic found, without the input it found it in."""
    problems = [
        {"at": ".".join(str(part) for part in found["loc"]), "problem": _problem(found)}
        for found in error.errors(include_url=False, include_input=False)
    ]
    first = problems[0]
    place = f" at {first['at']}" if first["at"] else ""
    return InvalidCommand(f"the command is not valid{place}: {first['problem']}", problems=problems)


def _problem(found: ErrorDetails) -> str:
    """pydantic's words, except where they would repeat what the client wrote."""
    if found["type"] == "union_tag_invalid":
        return f"{found['ctx']['discriminator']} needs to be one of {found['ctx']['expected_tags']}"
    return found["msg"]


def _incident() -> str:
    return uuid.uuid4().hex[:12]


def _plain(details: Any) -> Any:
    """Only what JSON has; anything else as its text. Errors carry paths, enumerations and sets."""
    if isinstance(details, dict):
        return {str(key): _plain(value) for key, value in details.items()}
    if isinstance(details, set | frozenset):
        return sorted(str(value) for value in details)
    if isinstance(details, list | tuple):
        return [_plain(value) for value in details]
    if details is None or type(details) in (bool, int, float, str):
        return details
    return str(details)


def tell(error: BaseException, *, incident: Callable[[], str] = _incident) -> Told:
    """The one place where an exception becomes an answer. What nobody foresaw is logged with its traceback and told as
    `Internal` with the incident's number, since its text may hold anything."""
    if isinstance(error, ValidationError):
        error = invalid(error)
    if not isinstance(error, StorageError):
        number = incident()
        _log.error("unforeseen failure", incident=number, exc_info=error)
        error = Internal(f"an unforeseen failure; the agent's log has it as incident {number}", incident=number)
    failure = Failure(
        kind=error.kind, retryable=error.retry.value, message=error.message, details=_plain(error.details)
    )
    return Told(failure, http_status(type(error)))
