"""Everything that can go wrong with storage, as one tree.

An error says three things to whoever gets it: `kind` (a stable name, part of the public interface), `retry` (whether doing
the same again can help) and `details` (numbers and names for the operator; never a secret). Backends translate what their
libraries raise at their own edge; nothing above sees a botocore error, an aiohttp error or a bare OSError.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class Retry(StrEnum):
    """Whether the same command may succeed when it is sent again unchanged."""

    YES = "yes"  # transient: the same again, later
    NO = "no"  # final: the command itself must change
    OPERATOR = "operator"  # somebody has to do something first: credentials, space, a mount


class StorageError(Exception):
    """Base of every error that leaves `stores`, `hypervisors` or `agent` on purpose.

    `message` is one sentence for an operator: what was needed, what there was, what to do.
    """

    retry: ClassVar[Retry] = Retry.NO

    def __init__(self, message: str, **details: object) -> None:
        super().__init__(message)
        self.message = message
        self.details: dict[str, object] = details

    @property
    def kind(self) -> str:
        """Stable name of the failure: the class name."""
        return type(self).__name__


class StoreError(StorageError):
    """A store could not do what it was asked."""


class NotFound(StoreError):
    """The object, bucket, directory or pool does not exist."""


class AlreadyExists(StoreError):
    """The name is taken, and nothing was overwritten."""


class AccessDenied(StoreError):
    """The store knows us and says no, or does not know our credentials."""

    retry = Retry.OPERATOR


class Unavailable(StoreError):
    """The store did not answer, answered 5xx or 429, or the connection broke."""

    retry = Retry.YES


class TlsFailed(StoreError):
    """No TLS session with the server: its certificate is not trusted or names another host, or there is no TLS there."""

    retry = Retry.OPERATOR


class ObjectChanged(StoreError):
    """The object's version is no longer the one this transfer began with."""

    retry = Retry.YES


class IntegrityError(StoreError):
    """Bytes, size or checksum differ from what was promised. Nothing of it was published."""

    retry = Retry.YES


class ChecksumMismatch(IntegrityError):
    """The whole content differs from the checksum that the command carries: fetching it again will not help."""

    retry = Retry.NO


class NoSpace(StoreError):
    """The destination has no room: details carry `needed` and `available` in bytes."""

    retry = Retry.OPERATOR


class TooLarge(StoreError):
    """A size limit was passed: details carry `limit` and `seen` in bytes."""


class InvalidReference(StoreError):
    """A name, path or URL that is not allowed to be what it is: escapes, NUL, leading dash, wrong characters."""


class PolicyRefused(StoreError):
    """Well formed, but refused by the configured policy: address ranges, schemes, directories outside the allow-list."""

    retry = Retry.OPERATOR


class StoreUnsupported(StoreError):
    """This kind of store cannot do this at all."""


class RequirementNotMet(StoreError):
    """Nothing that the store offers is accepted by whoever asked. Raised before any byte moved."""


class DeviceFault(StoreError):
    """A local disk or mount failed: EIO, EROFS, ESTALE and the like."""

    retry = Retry.OPERATOR


class CacheFailure(StoreError):
    """The cache could not make a copy, and the object's own store is not to blame: whoever can do without a copy does."""

    retry = Retry.YES
