"""What an HTTP answer means for a transfer: pure decisions, from statuses and headers to typed errors (RFC 9110)."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from stores.contract import ObjectInfo
from stores.errors import (
    AccessDenied,
    IntegrityError,
    NotFound,
    ObjectChanged,
    StorageError,
    StoreError,
    StoreUnsupported,
    Unavailable,
)
from stores.transfer.wire import Answer

RETRY_AFTER_LIMIT_S = 60.0
"""A server may ask for any delay; longer ones are cut to this, the command's deadline decides about the rest."""

_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(?:(\d{1,19})|\*)")
_TRANSIENT = frozenset({408, 425, 429})


def strong_etag(version: str | None) -> str | None:
    """`version` when it is a strong entity tag in its quotes, fit for If-Match; None otherwise (RFC 9110 section 8.8.3)."""
    if version is None or re.fullmatch(r'"[\x21\x23-\x7e]*"', version) is None:
        return None
    return version


def retry_after_s(answer: Answer, now: datetime) -> float:
    """Seconds that the server asks to wait, within `RETRY_AFTER_LIMIT_S`; 0 when it does not ask (RFC 9110 section 10.2.3)."""
    text = answer.headers.get("retry-after", "")
    if re.fullmatch(r"\d{1,9}", text):
        return min(float(text), RETRY_AFTER_LIMIT_S)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return 0.0
    wait_s = (moment.replace(tzinfo=moment.tzinfo or UTC) - now).total_seconds()
    return min(max(wait_s, 0.0), RETRY_AFTER_LIMIT_S)


def status_error(answer: Answer, what: str) -> StorageError:
    """The error for a status that brings no content. `what` names the object for the operator, without secrets."""
    said = f"the server answered {answer.status} for {what}"
    status = answer.status
    if status in (404, 410):
        return NotFound(f"{what} does not exist: the server answered {status}", status=status)
    if status in (401, 403, 407):
        return AccessDenied(f"{said}: access denied; check the credentials and the rights they give", status=status)
    if status == 412:
        return ObjectChanged(f"{what} is no longer the version this transfer began with", status=status)
    if status == 416:
        return IntegrityError(f"{what} is shorter than it was said to be: the server has no such range", status=status)
    if status in _TRANSIENT or status >= 500:
        return Unavailable(f"{said}; try again later", status=status)
    if 300 <= status < 400:
        return Unavailable(f"{said}: it has moved since it was looked up; try again", status=status)
    return StoreError(f"{said}, which this request should not get", status=status)


def is_transient(status: int) -> bool:
    """Whether the same request may be answered better a moment later: what AWS's SDKs try again, and 425 (RFC 8470)."""
    return status in _TRANSIENT or status in (500, 502, 503, 504)


def may_be_stale(status: int) -> bool:
    """Whether a fresh target may fare better: expired signatures are answered 400, 401 or 403, moved objects 3xx."""
    return status in (400, 401, 403) or 300 <= status < 400


def check_version(answer: Answer, info: ObjectInfo, what: str) -> None:
    """`ObjectChanged` when the answer's ETag is another than the one the transfer is pinned to."""
    etag, version = answer.headers.get("etag"), info.version
    if etag is None or version is None or not version.endswith('"'):
        return  # no entity tag on one side: nothing to compare
    if _opaque(etag) != _opaque(version):
        raise ObjectChanged(f"{what} changed during the transfer: its ETag is {etag}, it was {version}")


def _opaque(etag: str) -> str:
    """What an entity tag says. Swift sends those of most objects without the quotes."""
    return etag.removeprefix("W/").strip('"')


def check_range(answer: Answer, offset: int, length: int, info: ObjectInfo, what: str) -> int:
    """How many bytes from `offset`, of `length` wanted, a 206 brings, or a 200 that happens to have exactly those.

    A server may send less than was asked for; the rest is another request. `IntegrityError` when the answer contradicts the
    request or itself, `ObjectChanged` when it is of another version, `StoreUnsupported` when the server ignores ranges.
    """
    check_version(answer, info, what)
    if answer.status == 200:
        if offset == 0 and answer.length == length:
            return length
        if info.size is not None and answer.length is not None and answer.length != info.size:
            raise ObjectChanged(f"{what} has {answer.length} bytes, it had {info.size}")
        raise StoreUnsupported(
            f"the server sends all of {what} when asked for a range: it must be read as a ByteStream"
        )
    written = answer.headers.get("content-range", "")
    match = _CONTENT_RANGE.fullmatch(written)
    if match is None:
        raise IntegrityError(f"the server sent a part of {what} without saying which: Content-Range {written!r}")
    first, last = int(match[1]), int(match[2])
    if match[3] is not None and info.size is not None and int(match[3]) != info.size:
        raise ObjectChanged(f"{what} has {match[3]} bytes, it had {info.size}")
    if first != offset or not first <= last < offset + length:
        raise IntegrityError(
            f"the server sent bytes {first}-{last} of {what}, asked for {offset}-{offset + length - 1}"
        )
    if answer.chunked or answer.length != last - first + 1:
        raise IntegrityError(
            f"the server announced bytes {first}-{last} of {what} with Content-Length {answer.headers.get('content-length')}"
        )
    return last - first + 1
