"""Requests to one account of Swift: logging in, small requests over aiohttp, and where the bytes of objects go.

One token serves all. When it is refused it is renewed, once for everybody who meets the refusal at the same time.
"""

from __future__ import annotations

import asyncio
import itertools
import json as json_
import random
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
from yarl import URL

from stores.backends.connecting import Resolve, trusting_context
from stores.backends.swift_auth import Access, asked, granted
from stores.backends.swift_config import SwiftConfig
from stores.backends.swift_errors import may_change, refusal
from stores.errors import AccessDenied, NotFound, StorageError, TlsFailed, Unavailable
from stores.settings import StoreSettings
from stores.transfer.engine import TransferEngine
from stores.transfer.http import HttpPatience
from stores.transfer.put import PutAnswer
from stores.transfer.target import USER_AGENT, HttpTarget
from stores.url_policy import ParsedUrl

_SHORT = {"format": "json", "limit": "1"}


@dataclass(frozen=True, slots=True)
class Answer:
    """`headers` are found in any case of letters. `tries`: at which it came, from 1."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    tries: int = 1

    def json(self) -> Any:
        """`Unavailable` for what is none."""
        try:
            return json_.loads(self.body)
        except ValueError:
            raise Unavailable("the server answers what is no JSON: is something in between?") from None


class SwiftClient:
    """Of `config`. Opens on first use; belongs to one event loop. Raises errors of `stores.errors`."""

    def __init__(
        self,
        config: SwiftConfig,
        settings: StoreSettings,
        engine: TransferEngine,
        resolve: Resolve,
        *,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        spread: Callable[[], float] = random.random,
    ) -> None:
        """`sleep` and `spread` (random numbers in [0, 1)) are arguments for tests."""
        self.config = config
        self.patience = HttpPatience(
            connections=settings.connections,
            connect_timeout_s=config.connect_timeout,
            read_timeout_s=config.read_timeout,
            attempts=config.attempts,
        )
        self._ca_file = settings.ca_file
        self._engine = engine
        self._resolve = resolve
        self.sleep = sleep
        self._spread = spread
        self._turns = itertools.count()
        self._session: aiohttp.ClientSession | None = None
        self._tls: ssl.SSLContext | None = None
        self._access: Access | None = None
        self._renewing = asyncio.Lock()
        self._container_known = False
        self._making = asyncio.Lock()

    async def call(
        self,
        method: str,
        ref: str | None,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        of_account: bool = False,
    ) -> Answer:
        """The answer to a request about an object, with None about the container or the account, if it is a success; else its
        error, with `tries` in the details. What may succeed later is tried again; a refused token is renewed once."""
        access = await self.access()
        tries, renewed = 0, False
        while True:
            tries += 1
            path = f"{access.storage.target}?{urlencode(query or {})}" if of_account else self._path(access, ref, query)
            url = _url(access.storage, path)
            try:
                answer = await self._send(
                    method, url, {"X-Auth-Token": access.token.reveal(), **(headers or {})}, body, tries=tries
                )
                if answer.status < 300:
                    return answer
                error: StorageError = refusal(
                    answer.status, answer.body, store=self.config.id, operation=method, ref=ref
                )
                if answer.status == 401 and not renewed:
                    renewed = True
                    access = await self.access(instead_of=access)
                    continue
                again = may_change(answer.status)
            except Unavailable as failed:
                error, again = failed, True
            error.details["tries"] = tries
            if not again or tries >= self.patience.attempts:
                raise error
            await self.sleep(self.patience.wait_s(tries, self._spread()))

    async def container(self) -> Mapping[str, str]:
        """What the container's headers tell. Not by a HEAD, to which Swift answers 204 with a transfer encoding: no HTTP."""
        return (await self.call("GET", None, query=_SHORT)).headers

    async def account(self) -> Mapping[str, str]:
        """What the account's headers tell."""
        return (await self.call("GET", None, query=_SHORT, of_account=True)).headers

    async def make_container(self) -> None:
        """The container is there afterwards; made with the storage policy where it was not."""
        async with self._making:
            if self._container_known:
                return
            try:
                await self.container()
            except NotFound:
                policy = {"X-Storage-Policy": self.config.policy} if self.config.policy else {}
                await self.call("PUT", None, headers=policy)
            self._container_known = True

    async def access(self, *, instead_of: Access | None = None) -> Access:
        """Token and URL: the present ones, or new ones where the present ones are `instead_of`. `AccessDenied` when the service
        does not let us in."""
        async with self._renewing:
            if self._access is None or self._access is instead_of:
                self._access = await self._log_in()
            return self._access

    def target(self, ref: str, headers: Mapping[str, str] | None = None) -> Callable[[], Awaitable[HttpTarget]]:
        """Where the bytes of an object are, for one reader, which asks again when it was refused: then with a new token."""
        used: Access | None = None

        async def current() -> HttpTarget:
            nonlocal used
            used = await self.access(instead_of=used)
            return await self._target(used, ref, headers or {})

        return current

    def put_target(
        self, ref: str, headers: Mapping[str, str]
    ) -> tuple[Callable[[], Awaitable[HttpTarget]], Callable[[PutAnswer], bool]]:
        """The same for a `Putter`: where each attempt goes, and which answers are worth another one."""
        used: Access | None = None
        refused: Access | None = None

        async def current() -> HttpTarget:
            nonlocal used
            used = await self.access(instead_of=refused)
            return await self._target(used, ref, headers)

        def again(answer: PutAnswer) -> bool:
            nonlocal refused
            if answer.status == 401 and refused is None:
                refused = used
                return True
            return answer.status == 422 or may_change(answer.status)

        return current, again

    def segment_path(self, ref: str) -> str:
        """How a manifest names an object."""
        return f"/{self.config.container}/{ref}"

    async def aclose(self) -> None:
        """Closes connections. Idempotent; the next request opens anew."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _log_in(self) -> Access:
        wanted = asked(self.config)
        url = _url(self.config.auth_url, self.config.auth_url.target)
        tries = 0
        while True:
            tries += 1
            try:
                answer = await self._send(wanted.method, url, wanted.headers, wanted.body)
                if answer.status < 300:
                    return granted(self.config, answer.headers, answer.body)
                if answer.status in (401, 403):
                    raise AccessDenied(
                        f"{self.config.auth_url.origin} does not let us in: check account, userName and key",
                        store=self.config.id,
                        status=answer.status,
                    )
                error: StorageError = refusal(
                    answer.status, answer.body, store=self.config.id, operation="login", ref=None
                )
                again = may_change(answer.status)
            except Unavailable as failed:
                error, again = failed, True
            if not again or tries >= self.patience.attempts:
                raise error
            await self.sleep(self.patience.wait_s(tries, self._spread()))

    async def _send(self, method: str, url: URL, headers: Mapping[str, str], body: bytes, *, tries: int = 1) -> Answer:
        if self._tls is None:
            self._tls = await self._engine.run(trusting_context, self._ca_file)
        if self._session is None:
            timeout = aiohttp.ClientTimeout(
                total=None, sock_connect=self.patience.connect_timeout_s, sock_read=self.patience.read_timeout_s
            )
            self._session = aiohttp.ClientSession(
                timeout=timeout, headers={"User-Agent": USER_AGENT}, auto_decompress=False
            )
        # Swift sends a body behind some answers to a HEAD (an empty one, in chunks, with 401 and 403): no HTTP. On a connection
        # that is kept it would be taken for the next answer; here it makes the parser refuse this one, and a GET is asked.
        if method == "HEAD":
            headers = {**headers, "Connection": "close"}
        try:
            # No redirect is followed: it would take key or token elsewhere.
            async with self._session.request(
                method, url, headers=headers, data=body, allow_redirects=False, ssl=self._tls
            ) as answer:
                return Answer(answer.status, answer.headers, await answer.read(), tries)
        except aiohttp.ClientResponseError as error:
            if method == "HEAD":
                refused = await self._send("GET", url, {**headers, "Range": "bytes=0-0"}, body, tries=tries)
                if refused.status >= 400:
                    return refused
            raise Unavailable(
                f"{self.config.id}, {method}: {url.host} answers what is not HTTP: {error.message[:100]}",
                store=self.config.id,
            ) from None
        except aiohttp.ClientSSLError as error:
            raise TlsFailed(
                f"{self.config.id}: no TLS session with {url.host} ({error.os_error}): check the URL, and ca_file",
                store=self.config.id,
            ) from None
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            # Not chained: it may carry the request's headers.
            raise Unavailable(
                f"{self.config.id}, {method}: no complete answer from {url.host} ({type(error).__name__})",
                store=self.config.id,
            ) from None

    async def _target(self, access: Access, ref: str, headers: Mapping[str, str]) -> HttpTarget:
        storage = access.storage
        if storage.scheme == "https" and self._tls is None:
            self._tls = await self._engine.run(trusting_context, self._ca_file)
        addresses = await self._resolve(storage.host, storage.port)
        return HttpTarget(
            storage.host,
            storage.port,
            addresses[next(self._turns) % len(addresses)],
            self._tls if storage.scheme == "https" else None,
            self._path(access, ref, None),
            {**_token(access), **headers},
        )

    def _path(self, access: Access, ref: str | None, query: Mapping[str, str] | None) -> str:
        path = f"{access.storage.target}/{quote(self.config.container, safe='')}"
        if ref is not None:
            path += f"/{quote(ref)}"
        return f"{path}?{urlencode(query)}" if query else path


def _token(access: Access) -> dict[str, str]:
    return {"X-Auth-Token": access.token.reveal()}


def _url(at: ParsedUrl, target: str) -> URL:
    return URL(f"{at.origin}{target}", encoded=True)
