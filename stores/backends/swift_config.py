"""From a `SwiftTO` and the settings to what a client needs. Pure: contacts nothing, reads no file and no environment."""

from __future__ import annotations

from dataclasses import dataclass, field

from stores.contract import GiB, MiB
from stores.errors import AccessDenied, InvalidReference, StoreUnsupported, TooLarge
from stores.secret import Secret
from stores.settings import StoreSettings, UrlSettings
from stores.to import SwiftTO
from stores.url_policy import ParsedUrl, check_url

DEFAULT_CONTAINER = "storage-agent"
DEFAULT_DOMAIN = "Default"

# Defaults of Swift ("Static Large Objects" in its manual, and max_file_size in swift.conf), and its limit for names.
MANIFEST = 1000
MAX_SEGMENT = 5 * GiB
MAX_CONTAINER_NAME = 256

STREAM_PART = 5 * MiB
"""Each stream keeps one part in memory. Swift wants no more than a byte."""
FILE_PART = 8 * MiB
USUAL_PART = 64 * MiB
USUAL_PARTS = 32
"""Parts of files grow up to `USUAL_PART` before there are more of them."""

# Where an object store may be is the operator's decision, made in the management server, so only the text is checked.
URL_RULES = UrlSettings(allow_http=True, ports=())


@dataclass(frozen=True, slots=True)
class SwiftConfig:
    """Everything that determines a Swift client. Times are seconds."""

    id: str
    """`swift:<authentication URL>/<account>/<container>`: the same for all users of the account."""
    auth_url: ParsedUrl
    keystone: bool
    """Identity API v3; else Swift's own authentication, v1."""
    account: str | None
    """With Keystone the project."""
    user: str
    key: Secret = field(repr=False)
    domain: str
    region: str | None
    container: str
    policy: str | None
    connect_timeout: float
    read_timeout: float
    attempts: int
    """How often a call is tried in all."""


def swift_config(to: SwiftTO, settings: StoreSettings) -> SwiftConfig:
    """What `to` asks for, with `settings` where it does not say.

    `StoreUnsupported` for an authentication that is not spoken, `InvalidReference` for a malformed URL or container,
    `AccessDenied` without a user or a key.
    """
    url = check_url(to.url.strip(), URL_RULES)
    if url.has_query:
        raise InvalidReference("the authentication URL of a Swift store has no query (?)", url=url.origin)
    path = url.target.rstrip("/").removesuffix("/auth/tokens")
    version = path.rpartition("/")[2]
    if version.startswith("v2"):
        raise StoreUnsupported(
            f"{url.origin}{path}: version 2 of Keystone's API is not supported: give the URL of its version 3",
            url=url.origin,
        )
    if not to.userName or not to.key:
        raise AccessDenied("a Swift store needs userName and key")
    keystone = version == "v3"
    if keystone and not to.account:
        raise AccessDenied("a Swift store behind Keystone needs account: the name of the project")
    container = to.container or DEFAULT_CONTAINER
    if "/" in container or not container.isprintable() or len(container.encode()) > MAX_CONTAINER_NAME:
        raise InvalidReference(f"{container[:200]!r} is not a container's name", container=container[:200])
    return SwiftConfig(
        id="/".join(part for part in (f"swift:{url.origin}{path}", to.account, container) if part),
        auth_url=ParsedUrl(url.scheme, url.host, url.port, f"{path}/auth/tokens" if keystone else url.target),
        keystone=keystone,
        account=to.account or None,
        user=to.userName,
        key=to.key,
        domain=to.domain or DEFAULT_DOMAIN,
        region=to.region,
        container=container,
        policy=to.storagePolicy or None,
        connect_timeout=settings.connect_timeout,
        read_timeout=settings.read_timeout,
        attempts=settings.attempts,
    )


@dataclass(frozen=True, slots=True)
class SwiftCut:
    """How streams are cut into segments, and segments gathered in manifests. Other numbers than these are for tests."""

    smallest: int = STREAM_PART
    manifest: int = MANIFEST
    """Segments that a manifest may name. A manifest may name manifests, which multiplies this."""

    @property
    def piece(self) -> int:
        return self.smallest

    def length(self, number: int, size: int | None) -> int:
        """Always the same: a million segments of 5 MiB are 4.7 TiB. `TooLarge` beyond."""
        most = self.manifest * self.manifest
        if number > most or (size is not None and size > most * self.smallest):
            raise TooLarge(
                f"an object that comes as a stream holds at most {most * self.smallest} bytes: upload it from a file",
                limit=most * self.smallest,
                seen=size,
            )
        return self.smallest


SWIFT_CUT = SwiftCut()


def file_part_length(size: int) -> int:
    """Bytes of each segment of an object that is sent from a file of `size`: whole MiB. `TooLarge` beyond 4.8 TiB."""
    least = -(-size // MANIFEST)
    even = -(-size // USUAL_PARTS)
    length = max(FILE_PART, least, min(USUAL_PART, even))
    length = -(-length // MiB) * MiB
    if length > MAX_SEGMENT:
        limit = MANIFEST * MAX_SEGMENT
        raise TooLarge(f"a Swift object holds at most {limit} bytes", limit=limit, seen=size)
    return length
