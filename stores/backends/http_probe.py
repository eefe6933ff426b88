"""Finding an object on the web: redirects followed one by one, each hop checked, connected to exactly what was checked.

A GET of the first byte asks everything at once: whether the object is there, its size, its version, and whether ranges
really work, which `Accept-Ranges` only claims. A HEAD would tell less, and URLs that are signed for GET refuse it.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

import aiohttp
from yarl import URL

from stores.backends.connecting import Resolve
from stores.contract import ObjectInfo
from stores.errors import NotFound, PolicyRefused, StorageError, StoreError, TlsFailed, Unavailable
from stores.settings import UrlSettings
from stores.transfer.answers import status_error
from stores.transfer.target import USER_AGENT
from stores.transfer.wire import Answer
from stores.url_policy import ParsedUrl, check_address, follow

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_FIRST_BYTE = re.compile(r"bytes 0-0/(\d{1,19})")
_NO_BYTES = re.compile(r"bytes \*/0")


@dataclass(frozen=True, slots=True)
class Found:
    """Where an object is after all redirects, the address that answered, and what it is."""

    url: ParsedUrl
    address: str
    info: ObjectInfo
    last_modified: str | None
    """As the server wrote it, for conditional requests."""


@dataclass(frozen=True, slots=True)
class _Hop:
    address: str
    status: int
    headers: Mapping[str, str]


class Prober:
    """Asks servers, within `policy`. `session` must neither follow redirects nor use proxies or cookies."""

    def __init__(
        self, session: aiohttp.ClientSession, tls: ssl.SSLContext, policy: UrlSettings, resolve: Resolve
    ) -> None:
        self._session = session
        self._tls = tls
        self._policy = policy
        self._resolve = resolve

    async def find(self, ref: str, url: ParsedUrl) -> Found:
        """The object at `url`, which passed `check_url`. `PolicyRefused` when any hop leads where the policy forbids."""
        for _ in range(self._policy.max_redirects + 1):
            hop = await self._ask(url)
            if hop.status not in _REDIRECTS:
                info = read_answer(ref, hop.status, hop.headers, what=f"{ref} on {url.host}")
                return Found(url, hop.address, info, hop.headers.get("Last-Modified"))
            location = hop.headers.get("Location")
            if location is None:
                raise Unavailable(f"{ref} on {url.host}: redirected to nowhere", ref=ref, status=hop.status)
            following = follow(url, location, self._policy)
            if following.target == f"{url.target}/":  # how web servers answer for a folder
                raise NotFound(f"{ref} on {url.host} is a folder", ref=ref)
            url = following
        raise PolicyRefused(
            f"{ref}: more than {self._policy.max_redirects} redirects, the last one to {url.origin}",
            ref=ref,
            limit=self._policy.max_redirects,
        )

    async def _ask(self, url: ParsedUrl) -> _Hop:
        """One request, to the first of the host's allowed addresses that can be reached."""
        failure: StorageError = Unavailable(f"{url.host} has no address", host=url.host)
        for address in await self._addresses(url):
            try:
                return await self._first_byte(url, address)
            except aiohttp.ClientSSLError as error:
                raise TlsFailed(
                    f"no TLS session with {url.host} at {address}: {error.os_error}: check the name in the URL, and ca_file",
                    host=url.host,
                ) from error
            except aiohttp.ClientConnectorError as error:
                failure = Unavailable(
                    f"{url.host} at {address} cannot be reached: {error.strerror}", host=url.host, address=address
                )
            except (aiohttp.ClientError, TimeoutError) as error:
                # Not chained: these carry the URL, whose query may hold a token.
                raise Unavailable(
                    f"{url.host} at {address} gave no answer: {type(error).__name__}", host=url.host, address=address
                ) from None
        raise failure

    async def _addresses(self, url: ParsedUrl) -> Sequence[str]:
        """Those of the host's addresses that the policy allows; its refusal if it allows none."""
        allowed: list[str] = []
        refusal: StorageError | None = None
        for address in await self._resolve(url.host, url.port):
            try:
                allowed.append(str(check_address(address, self._policy)))
            except StoreError as error:
                refusal = error
        if not allowed and refusal is not None:
            raise PolicyRefused(f"{url.host}: {refusal.message}", host=url.host, **refusal.details)
        return allowed

    async def _first_byte(self, url: ParsedUrl, address: str) -> _Hop:
        literal = f"[{address}]" if ":" in address else address
        request = self._session.get(
            URL(f"{url.scheme}://{literal}:{url.port}{url.target}", encoded=True),
            headers={
                "Host": url.authority,
                "Range": "bytes=0-0",
                "Accept-Encoding": "identity",
                "User-Agent": USER_AGENT,
            },
            allow_redirects=False,
            ssl=self._tls,
            server_hostname=url.host if url.scheme == "https" else None,
        )
        async with request as answer:
            return _Hop(address, answer.status, answer.headers)


def read_answer(ref: str, status: int, headers: Mapping[str, str], *, what: str) -> ObjectInfo:
    """What the answer to a GET of the first byte says of the object. Pure.

    Ranges count as offered only where a 206 brought the range that was asked for, and its Content-Range says the whole
    size. The version is the ETag, or without one the time of the last change with the size.
    """
    if status == 206:
        match = _FIRST_BYTE.fullmatch(headers.get("Content-Range", ""))
        size = int(match[1]) if match else None
    elif status == 200:
        length = headers.get("Content-Length", "")
        size = int(length) if length.isascii() and length.isdigit() else None
    elif status == 416 and _NO_BYTES.fullmatch(headers.get("Content-Range", "")):
        size = 0
    else:
        raise status_error(Answer(status, "", {}, keep_alive=False), what)
    if status == 206 and size is None:
        raise StoreError(f"{what}: the server answers a range request without saying which range of what size", ref=ref)
    modified = headers.get("Last-Modified")
    version = headers.get("ETag") or (f"{modified}; {size}" if modified else None)
    return ObjectInfo(ref, size, version, _epoch(modified), ranges=status != 200)


def _epoch(date: str | None) -> float | None:
    """Seconds since the epoch of an HTTP date; None if it is none."""
    if date is None:
        return None
    try:
        moment = parsedate_to_datetime(date)
    except ValueError:
        return None
    return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
