"""What became of an upload, for those who wait for it or want to change it."""

from __future__ import annotations

from stores.cache.ledger.uploads import Upload
from stores.cache.schema import UploadState
from stores.cache.writeback.errors import UploadCancelled, UploadOver, UploadPending, told
from stores.contract import ObjectInfo


def outcome(found: Upload) -> ObjectInfo | None:
    """What came of an upload; None: nothing yet."""
    if found.state is UploadState.STORED:
        return ObjectInfo(found.ref, found.size, version=found.version)
    if found.state in (UploadState.CANCELLING, UploadState.CANCELLED):
        raise UploadCancelled(f"the upload of {found.ref} was cancelled", upload=found.id)
    if found.state is UploadState.FAILED and found.error is not None:
        raise told(found.error, upload=found.id)
    return None


def pending(found: Upload) -> UploadPending:
    """For who waits for it and can wait no longer."""
    why = f"; the last of {found.attempts} attempts failed: {found.error['message']}" if found.error else ""
    return UploadPending(
        f"{found.ref} is not stored yet, but safe on this host, which goes on trying{why}. Send the same again to wait for it",
        upload=found.id,
        attempts=found.attempts,
        last_error=found.error["kind"] if found.error else None,
        age_s=round(found.age_s, 3),
        bytes=found.size,
    )


def over(found: Upload) -> UploadOver:
    """For who wants to change something about it."""
    return UploadOver(f"the upload of {found.ref} has ended: it is {found.state}", upload=found.id, state=found.state)
