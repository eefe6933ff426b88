"""Objects on web servers, read-only."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import quote

import aiohttp

from stores.backends.connecting import Resolve, system_resolve, trusting_context
from stores.backends.http_probe import Found, Prober
from stores.contract import DataStore, HttpUrl, Kind, ObjectInfo, Presentation
from stores.errors import InvalidReference, ObjectChanged, Unavailable
from stores.paths import check_ref
from stores.settings import StoreSettings
from stores.streams import presented
from stores.transfer.engine import TransferEngine
from stores.transfer.http import HttpByteStream, HttpPatience, HttpRangeReader, HttpTarget
from stores.url_policy import ParsedUrl, check_url

# What RFC 3986 allows in a path segment beside letters and digits: everything else of a ref is percent-encoded.
_PATH_SAFE = "/-._~!$&'()*+,;=:@"


class HttpStore(DataStore):
    """What is below a base URL. A ref is a relative path, taken literally and percent-encoded here.

    Every URL contacted passes `stores.url_policy`, redirects and addresses included. There are no credentials: user
    information in a URL is refused. A `HttpUrl` is offered only where the settings say so (`urls.external_fetch`), because
    a tool that is given a URL resolves its host again and follows redirects unchecked; without it the object still reaches
    such a tool through the bridge.
    """

    def __init__(
        self,
        base_url: str,
        settings: StoreSettings,
        engine: TransferEngine,
        *,
        resolve: Resolve = system_resolve,
        spread: Callable[[], float] = random.random,
    ) -> None:
        """`spread` gives random numbers in [0, 1) for the waits between attempts.

        `InvalidReference` or `PolicyRefused` for a URL that may not be used.
        """
        base = check_url(base_url, settings.urls)
        if base.has_query:
            raise InvalidReference(f"the base URL on {base.origin} has a query (?): an object's path cannot follow it")
        self.id = f"http:{base.url.rstrip('/')}"
        self._base = base
        self._settings = settings
        self._engine = engine
        self._resolve = resolve
        self._spread = spread
        self._patience = HttpPatience(
            connections=settings.connections,
            connect_timeout_s=settings.connect_timeout,
            read_timeout_s=settings.read_timeout,
            attempts=settings.attempts,
        )
        self._opening = asyncio.Lock()
        self._session: aiohttp.ClientSession | None = None
        self._tls: ssl.SSLContext | None = None

    def offers(self, info: ObjectInfo | None = None) -> frozenset[Kind]:
        kinds = {Kind.BYTE_STREAM}
        if info is None or info.ranges:
            kinds.add(Kind.RANGE_READER)
            if self._settings.urls.external_fetch:
                kinds.add(Kind.HTTP_URL)
        return frozenset(kinds)

    async def stat(self, ref: str) -> ObjectInfo:
        """`size` may be None, and `ranges` False, where the server does not tell or has none."""
        return (await self._find(ref)).info

    @asynccontextmanager
    async def present(self, info: ObjectInfo, kind: Kind) -> AsyncIterator[Presentation]:
        check_ref(info.ref)
        if kind not in self.offers(info):
            raise self._unsupported(f"presenting this object as {kind}")
        if kind is Kind.HTTP_URL:
            found = await self._find_again(info)
            # A query may hold a token, and this URL will be in an argv: then rather the one from before the redirects.
            url = self._url(info.ref) if found.url.has_query else found.url
            yield HttpUrl(url.url, info)
            return

        async def target() -> HttpTarget:
            return await self._target(info)

        if not info.ranges:
            async with presented(HttpByteStream(self._engine, info, target, patience=self._patience)) as stream:
                yield stream
            return
        reader = HttpRangeReader(self._engine, info, target, patience=self._patience)
        if kind is Kind.RANGE_READER:
            yield reader
            return
        async with presented(self._engine.stream(reader)) as stream:
            yield stream

    async def aclose(self) -> None:
        async with self._opening:
            session, self._session = self._session, None
            if session is not None:
                await session.close()

    async def _target(self, info: ObjectInfo) -> HttpTarget:
        found = await self._find_patiently(info)
        # If-Match, which a strong ETag allows, is the reader's; a date at least notices most changes.
        unchanged = {} if found.last_modified is None else {"If-Unmodified-Since": found.last_modified}
        tls = self._tls if found.url.scheme == "https" else None
        return HttpTarget(found.url.host, found.url.port, found.address, tls, found.url.target, unchanged)

    async def _find_patiently(self, info: ObjectInfo) -> Found:
        """For a transfer that has begun, and may outlive many a moment in which its server does not answer."""
        failures = 0
        while True:
            try:
                return await self._find_again(info)
            except Unavailable:
                failures += 1
                if failures >= self._patience.attempts:
                    raise
            await asyncio.sleep(self._patience.wait_s(failures, self._spread()))

    async def _find_again(self, info: ObjectInfo) -> Found:
        found = await self._find(info.ref)
        if info.version is not None and found.info.version != info.version:
            raise ObjectChanged(
                f"{info.ref} on {found.url.host} changed since it was looked at; start again", ref=info.ref
            )
        return found

    async def _find(self, ref: str) -> Found:
        check_ref(ref)
        prober = await self._prober()
        return await prober.find(ref, self._url(ref))

    def _url(self, ref: str) -> ParsedUrl:
        return check_url(f"{self._base.url.rstrip('/')}/{quote(ref, safe=_PATH_SAFE)}", self._settings.urls)

    async def _prober(self) -> Prober:
        settings = self._settings
        async with self._opening:
            if self._tls is None:
                self._tls = await self._engine.run(trusting_context, settings.ca_file)
            if self._session is None:
                self._session = aiohttp.ClientSession(
                    cookie_jar=aiohttp.DummyCookieJar(),
                    auto_decompress=False,
                    timeout=aiohttp.ClientTimeout(
                        total=settings.connect_timeout + settings.read_timeout,
                        sock_connect=settings.connect_timeout,
                        sock_read=settings.read_timeout,
                    ),
                )
            return Prober(self._session, self._tls, settings.urls, self._resolve)
