"""The listeners: a unix socket, and TCP with mutual TLS; limits on connections and on time."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web

from agent.config import ApiSection, split_listen
from agent.security import Role, SecuritySetup, UnixPolicy, open_unix_listener, server_tls
from agent.transports.http_api.edge import AccessRules, guard
from agent.transports.http_api.route import Api
from agent.transports.http_api.routes import ROUTES

_log = structlog.get_logger(__name__)

_HANDSHAKE_S = 10.0
_END_S = 5.0  # for the last answers, once everything that waits was told to end
_LINGER_S = 1.0  # for the rest of a body that was refused
_MAX_HEADER = 4096


class HttpApi:
    """The `Transport` over HTTP."""

    def __init__(self, api: Api, settings: ApiSection, *, passed: Sequence[socket.socket] = ()) -> None:
        """`passed`: listening sockets from systemd. One of the unix family takes the place of `settings.socket`, one of
        the internet families that of `settings.tcp_listen`."""
        self._api = api
        self._settings = settings
        self._passed = tuple(passed)
        self._runner: web.AppRunner | None = None
        self._servers: list[asyncio.Server] = []
        self._own_path: Path | None = None

    @property
    def addresses(self) -> list[str]:
        """Where it listens, for logs and people."""
        return [_address(sock.getsockname()) for server in self._servers for sock in server.sockets]

    async def start(self) -> None:
        settings = self._settings
        policy = UnixPolicy.resolve(settings.users, settings.group)
        rules = AccessRules(policy, settings.tls_roles)
        app = _application(self._api, rules, max_body=settings.max_body)
        self._runner = web.AppRunner(
            app,
            access_log=None,  # `edge` logs, with the caller
            handler_cancellation=True,  # whoever goes away stops waiting; commands go on
            keepalive_timeout=settings.request_timeout_s,  # also bounds the time for a request's headers
            shutdown_timeout=_END_S,
            lingering_time=_LINGER_S,
            auto_decompress=False,
            max_line_size=_MAX_HEADER,
            max_field_size=_MAX_HEADER,
        )
        await self._runner.setup()
        try:
            for listener, tls in self._listeners(policy):
                await self._listen(listener, tls)
        except BaseException:
            await self.stop()
            raise
        _log.info("listening", addresses=self.addresses)

    async def stop(self) -> None:
        self._api.closing.set()
        for server in self._servers:
            server.close()
        if self._own_path is not None:
            self._own_path.unlink(missing_ok=True)
            self._own_path = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        for server in self._servers:
            await server.wait_closed()
        self._servers.clear()

    def _listeners(self, policy: UnixPolicy) -> list[tuple[socket.socket, ssl.SSLContext | None]]:
        local = [sock for sock in self._passed if sock.family == socket.AF_UNIX]
        remote = [sock for sock in self._passed if sock.family != socket.AF_UNIX]
        tls = self._tls() if remote or self._settings.tcp_listen else None
        if not local:
            mode = int(self._settings.mode, 8)
            local = [open_unix_listener(self._settings.socket, mode=mode, group=policy.group)]
            self._own_path = self._settings.socket
        if not remote and self._settings.tcp_listen:
            remote = [_tcp_listener(self._settings.tcp_listen)]
        return [(sock, None) for sock in local] + [(sock, tls) for sock in remote]

    def _tls(self) -> ssl.SSLContext:
        settings = self._settings
        if settings.tls_cert is None or settings.tls_key is None or settings.tls_client_ca is None:
            raise SecuritySetup("a TCP listener needs mutual TLS: set api.tls_cert, api.tls_key and api.tls_client_ca")
        return server_tls(settings.tls_cert, settings.tls_key, settings.tls_client_ca)

    async def _listen(self, listener: socket.socket, tls: ssl.SSLContext | None) -> None:
        listener.setblocking(False)
        self._servers.append(
            await asyncio.get_running_loop().create_server(
                partial(self._accept, self._settings.max_connections),
                sock=listener,
                ssl=tls,
                ssl_handshake_timeout=_HANDSHAKE_S if tls else None,
            )
        )

    def _accept(self, limit: int) -> asyncio.Protocol:
        server = self._runner.server if self._runner else None
        if server is None or len(server.connections) >= limit:
            return _HangUp()
        return server()


class _HangUp(asyncio.Protocol):
    """For connections beyond the limit."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def _application(api: Api, rules: AccessRules, *, max_body: int) -> web.Application:
    roles = {(route.method, route.path): route.role for route in ROUTES}

    def needed(request: web.Request) -> Role:
        resource = request.match_info.route.resource
        return roles.get((request.method, resource.canonical if resource else ""), Role.VIEW)

    app = web.Application(middlewares=[guard(rules, api.metrics, needed)], client_max_size=max_body)
    for route in ROUTES:
        app.router.add_route(route.method, route.path, partial(route.handler, api))
    app.on_response_prepare.append(_headers)
    return app


async def _headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = "storage-agent"
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers.setdefault("Cache-Control", "no-store")


def _tcp_listener(listen: str) -> socket.socket:
    host, port = split_listen(listen)
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=128, reuse_port=False
        )
    except OSError as error:
        raise SecuritySetup(f"cannot listen on {listen}: {error.strerror or error}", listen=listen) from error


def _address(name: Any) -> str:
    """What `getsockname` gives, as text."""
    return os.fsdecode(name) if isinstance(name, str | bytes) else f"{name[0]}:{name[1]}"
