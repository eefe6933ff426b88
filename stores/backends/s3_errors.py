"""What botocore raises, as errors of `stores.errors`. The only place that reads S3 error codes.

The codes are those of Amazon's "Error responses" list, and what SeaweedFS, Ceph, MinIO and moto were seen to send beside
them. A HEAD has no body, so that its code is the bare status.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from stores.errors import (
    AccessDenied,
    AlreadyExists,
    IntegrityError,
    InvalidReference,
    NoSpace,
    NotFound,
    StorageError,
    StoreError,
    StoreUnsupported,
    TlsFailed,
    TooLarge,
    Unavailable,
)

_ACCESS_HINTS = {
    "InvalidAccessKeyId": "the store does not know the access key: check accessKey",
    "SignatureDoesNotMatch": "the store computes another signature: check secretKey, and that no proxy changes the request",
    "RequestTimeTooSkewed": "the clocks of this host and of the store differ too much: check time synchronisation",
    "AuthorizationHeaderMalformed": "the signature names another region than the store expects: check region",
    "PermanentRedirect": "the bucket is at another endpoint: check endPoint and region",
    "301": "the bucket is at another endpoint: check endPoint and region",
    "ExpiredToken": "the credentials have expired: renew them",
    "InvalidToken": "the credentials have expired: renew them",
}
_ACCESS_HINT = "check the credentials and what the bucket's policy allows them"

_CLASSES: dict[str, type[StoreError]] = {
    **dict.fromkeys(_ACCESS_HINTS, AccessDenied),
    **dict.fromkeys(("AccessDenied", "AllAccessDisabled", "AccountProblem", "NotSignedUp", "401", "403"), AccessDenied),
    **dict.fromkeys(("NoSuchKey", "NoSuchBucket", "NoSuchVersion", "404"), NotFound),
    **dict.fromkeys(("PreconditionFailed", "412"), AlreadyExists),
    **dict.fromkeys(("BadDigest", "InvalidDigest", "XAmzContentSHA256Mismatch", "IncompleteBody"), IntegrityError),
    **dict.fromkeys(("InvalidPart", "InvalidPartOrder", "XAmzContentChecksumMismatch"), IntegrityError),
    # We send none: it was damaged on its way.
    "MalformedXML": IntegrityError,
    **dict.fromkeys(("EntityTooLarge", "MaxMessageLengthExceeded"), TooLarge),
    **dict.fromkeys(("QuotaExceeded", "XMinioStorageFull", "InsufficientStorage", "507"), NoSpace),
    **dict.fromkeys(("KeyTooLongError", "InvalidBucketName", "XMinioInvalidObjectName"), InvalidReference),
    **dict.fromkeys(("NotImplemented", "MethodNotAllowed", "501", "405"), StoreUnsupported),
    # Another request for the same key is under way, or somebody aborted the upload: the same again may succeed.
    **dict.fromkeys(("ConditionalRequestConflict", "OperationAborted", "NoSuchUpload"), Unavailable),
    **dict.fromkeys(("SlowDown", "RequestTimeout", "Throttling", "TooManyRequests", "429"), Unavailable),
}


@contextmanager
def translated(store: str, operation: str, ref: str | None = None) -> Iterator[None]:
    """Whatever botocore raises inside, as the typed error for `operation` on `ref`. Cancellation passes."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        told = error.response.get("ResponseMetadata", {})
        translation = from_code(code, int(told.get("HTTPStatusCode", 0)), store=store, operation=operation, ref=ref)
        translation.details["tries"] = int(told.get("RetryAttempts", 0)) + 1
        raise translation from error
    except (BotoCoreError, OSError) as error:
        raise _from_transport(error, store=store, operation=operation, ref=ref) from error


def from_code(code: str, status: int, *, store: str, operation: str, ref: str | None) -> StorageError:
    """The error for an answer with that S3 error code and HTTP status. Pure."""
    where = f"{store}, {operation}" + (f" of {ref}" if ref else "")
    details = {"store": store, "operation": operation, "ref": ref, "code": code, "status": status}
    kind = _CLASSES.get(code) or _CLASSES.get(str(status))
    if kind is None:
        kind = Unavailable if status >= 500 else StoreError
    if kind is AccessDenied:
        return AccessDenied(f"{where}: the store answers {code}: {_ACCESS_HINTS.get(code, _ACCESS_HINT)}", **details)
    if kind is NotFound:
        what = "no such bucket" if code == "NoSuchBucket" else "no such object, or no such bucket"
        return NotFound(f"{where}: {what}", **details)
    if kind is AlreadyExists:
        return AlreadyExists(f"{where}: the name is taken, and this write was not told to replace", **details)
    return kind(f"{where}: the store answers {code} (HTTP status {status})", **details)


def _from_transport(error: Exception, *, store: str, operation: str, ref: str | None) -> StorageError:
    from botocore.exceptions import ParamValidationError, SSLError

    where = f"{store}, {operation}" + (f" of {ref}" if ref else "")
    details = {"store": store, "operation": operation, "ref": ref, "code": type(error).__name__}
    if isinstance(error, SSLError):
        return TlsFailed(
            f"{where}: no TLS session ({error.kwargs.get('error')}): check the endpoint's scheme and name, and ca_file",
            **details,
        )
    if isinstance(error, ParamValidationError):
        return InvalidReference(f"{where}: {error}", **details)
    return Unavailable(f"{where}: no complete answer ({type(error).__name__}: {error})", **details)
