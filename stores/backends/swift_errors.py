"""What Swift's statuses mean, as errors of `stores.errors`. Pure."""

from __future__ import annotations

from stores.errors import (
    AccessDenied,
    AlreadyExists,
    IntegrityError,
    InvalidReference,
    NoSpace,
    NotFound,
    StoreError,
    TooLarge,
    Unavailable,
)

TRANSIENT = frozenset({408, 409, 425, 429, 498, 499})
"""Worth another try, as every 5xx but 501 and 507 is. 409: another request for the same object is newer. 498 is that of Swift's
own rate limit."""


def may_change(status: int) -> bool:
    return status in TRANSIENT or (status >= 500 and status not in (501, 507))


def refusal(status: int, body: bytes, *, store: str, operation: str, ref: str | None) -> StoreError:
    """The error for an answer with that status, whose body begins with `body`."""
    where = f"{store}, {operation}" + (f" of {ref}" if ref else "")
    details: dict[str, object] = {"store": store, "operation": operation, "ref": ref, "status": status}
    said = body[:300].decode("latin-1").lower()
    if status == 401:
        return AccessDenied(f"{where}: the token is refused: check userName and key, and the clocks", **details)
    if status == 403:
        return AccessDenied(f"{where}: denied: check what the user may do in this account", **details)
    if status == 404:
        return NotFound(f"{where}: no such object, or no such container or account", **details)
    if status == 412 and "container name" not in said and "object name" not in said:
        return AlreadyExists(f"{where}: the name is taken, and this write was not told to replace", **details)
    if status == 412:
        return InvalidReference(f"{where}: the server does not take that name", **details)
    if status == 422 or (status == 400 and "etag mismatch" in said) or (status == 400 and "errors" in said):
        return IntegrityError(f"{where}: the server has other bytes than were sent (HTTP status {status})", **details)
    if status == 507 or (status == 413 and "quota" in said):
        return NoSpace(f"{where}: there is no room, or no quota, left (HTTP status {status})", **details)
    if status == 413:
        return TooLarge(f"{where}: larger than this server takes", **details)
    if may_change(status):
        return Unavailable(f"{where}: the server answers {status}; try again later", **details)
    return StoreError(f"{where}: the server answers {status}", **details)
