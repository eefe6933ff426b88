"""What staging and waiting for an upload can end with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stores import errors
from stores.errors import AlreadyExists, CacheFailure, NotFound, Retry, StorageError, StoreError


class UploadPending(StoreError):
    """The store does not have it yet. The bytes are safe on this host, and are uploaded until they are stored: the same
    again waits for that upload. Details: `upload` (its id), `attempts`, `last_error` (its kind, or None), `age_s`."""

    retry = Retry.YES


class UploadCancelled(StoreError):
    """Somebody has cancelled the upload, and its bytes are gone from this host."""


class UploadOver(StoreError):
    """The upload has ended: it cannot be cancelled or tried again any more."""


class UploadUnknown(NotFound):
    """No pool of this host knows an upload of that id. Those that were stored are forgotten when that was acknowledged."""


class StagedCopyDamaged(StoreError):
    """The file of an upload is not the one that was staged: it is never sent. Cancel the upload, and write the object again."""


class AlreadyStaged(AlreadyExists):
    """The same write was staged before, and nothing was written again: wait for the upload that details name, `upload`."""


class UploadsFull(CacheFailure):
    """What no store has yet takes all the room that it may take. Details carry bytes: `needed`, and of the pool `limit`,
    `unstored`."""


class QueueDraining(StoreError):
    """Nothing new is staged, since the queue is being emptied for maintenance."""

    retry = Retry.YES


def told(error: Mapping[str, Any], **details: object) -> StorageError:
    """An error as it was written down: kind, message, details. One that has its class here is of that again; another one, which
    this release may not know, is a `StoreError` that says the same."""
    known = {**vars(errors), StagedCopyDamaged.__name__: StagedCopyDamaged}.get(error["kind"])
    kind = known if isinstance(known, type) and issubclass(known, StorageError) else StoreError
    return kind(error["message"], **{**error["details"], **details})
