"""From an `S3TO` and the settings to what a client needs. Pure: contacts nothing, reads no file and no environment."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from stores.contract import GiB, MiB
from stores.errors import AccessDenied, InvalidReference, StoreUnsupported
from stores.secret import Secret
from stores.settings import StoreSettings, UrlSettings
from stores.to import S3TO
from stores.url_policy import check_url

DEFAULT_REGION = "us-east-1"

DEFAULT_SINGLE_PUT = 5 * MiB
# Amazon S3's limit for an object uploaded in a single operation.
MAX_SINGLE_PUT = 5 * GiB

# Signer names of the AWS SDK for Java v1 (com.amazonaws.auth.SignerFactory), which is what CloudStack passes on. All of
# them mean Signature Version 4; what is not listed (S3SignerType, QueryStringSignerType, ...) is older.
_SIGV4_SIGNERS = frozenset({"AWSS3V4SignerType", "AWS4SignerType", "AWS4UnsignedPayloadSignerType"})

# Names as general as servers allow (radosgw, legacy us-east-1), less what could be read as an ARN or a path.
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")

# Where an object store may be is the operator's decision, made in the management server, so only the text is checked.
_ENDPOINT_RULES = UrlSettings(allow_http=True, ports=())


@dataclass(frozen=True, slots=True)
class S3Config:
    """Everything that determines an S3 client. Times are seconds."""

    id: str
    """`s3:<endpoint>/<bucket>`: the same for every set of credentials, since the data is the same."""
    bucket: str
    endpoint: str | None
    """With scheme, without a trailing slash. None: AWS, by region."""
    region: str
    path_style: bool
    access_key: str | None
    """None: anonymous."""
    secret_key: Secret | None = field(repr=False)
    connect_timeout: float
    read_timeout: float
    attempts: int
    """How often a call is tried in all."""
    single_put: int
    """Largest object in bytes that is sent by a single PUT; larger ones go in parts."""


def s3_config(to: S3TO, settings: StoreSettings) -> S3Config:
    """What `to` asks for, with `settings` where it does not say.

    `StoreUnsupported` for a signer that is not Signature Version 4, `InvalidReference` for a malformed endpoint or bucket,
    `AccessDenied` for half a pair of keys.
    """
    if to.signer and to.signer not in _SIGV4_SIGNERS:
        raise StoreUnsupported(
            f"signer {to.signer!r} is not supported: only Signature Version 4 is spoken (AWSS3V4SignerType, or leave it out)",
            signer=to.signer,
        )
    if not _BUCKET.fullmatch(to.bucketName) or ".." in to.bucketName:
        raise InvalidReference(f"{to.bucketName!r} is not a bucket name", bucket=to.bucketName)
    if bool(to.accessKey) != bool(to.secretKey):
        raise AccessDenied("an S3 store needs both accessKey and secretKey, or neither for anonymous access")
    endpoint = _endpoint(to) if to.endPoint else None
    return S3Config(
        id=f"s3:{endpoint or 'aws'}/{to.bucketName}",
        bucket=to.bucketName,
        endpoint=endpoint,
        region=to.region or DEFAULT_REGION,
        path_style=endpoint is not None if to.pathStyle is None else to.pathStyle,
        access_key=to.accessKey or None,
        secret_key=to.secretKey if to.accessKey else None,
        connect_timeout=_seconds(to.connectionTimeout, settings.connect_timeout),
        read_timeout=_seconds(to.socketTimeout, settings.read_timeout),
        attempts=settings.attempts if to.maxErrorRetry is None else max(0, to.maxErrorRetry) + 1,
        single_put=_single_put(to.maxSingleUploadSizeInBytes),
    )


def _endpoint(to: S3TO) -> str:
    """`endPoint` in canonical form. Without a scheme `httpsFlag` decides, and its absence means https."""
    text = (to.endPoint or "").strip()
    if "://" not in text:
        text = f"{'http' if to.httpsFlag is False else 'https'}://{text}"
    parsed = check_url(text, _ENDPOINT_RULES)
    if parsed.has_query:
        raise InvalidReference("an S3 endpoint has no query (?)", endpoint=parsed.origin)
    return parsed.origin + parsed.target.rstrip("/")


def _single_put(asked: int | None) -> int:
    """CloudStack's threshold: negative means always one PUT, 0 never."""
    if asked is None:
        return DEFAULT_SINGLE_PUT
    return MAX_SINGLE_PUT if asked < 0 else min(asked, MAX_SINGLE_PUT)


def _seconds(milliseconds: int | None, default: float) -> float:
    """CloudStack's time-outs are ms. 0 means none to its SDK; an agent never waits for ever."""
    return milliseconds / 1000 if milliseconds is not None and milliseconds > 0 else default
