"""What every request passes, whatever its route: who calls, may they, what went wrong, how long it took."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware

from agent.metrics import Metrics
from agent.security import Caller, Role, UnixPolicy, certificate_caller, peer_of
from agent.transports.http_api.problems import Forbidden, failure_response, problem_of

_log = structlog.get_logger(__name__)

_METHODS = frozenset({"GET", "POST", "DELETE"})
EVENTS_PATH = "/v1/commands/{id}/events"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class AccessRules:
    """Roles of callers, on either kind of listener."""

    unix: UnixPolicy
    certificates: Mapping[str, Role]

    def caller(self, request: web.Request) -> Caller:
        """Whoever is at the other end. A connection that is neither local nor authenticated has no role."""
        transport = request.transport
        connection = transport.get_extra_info("socket") if transport else None
        if transport is None or connection is None:
            return Caller("a caller who is gone", None)
        if connection.family == socket.AF_UNIX:
            return self.unix.caller(peer_of(connection))
        tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        certificate = tls.getpeercert() if tls else None
        return certificate_caller(certificate or {}, self.certificates)


def guard(rules: AccessRules, metrics: Metrics, needed: Callable[[web.Request], Role]) -> Middleware:
    """The middleware: identify, authorise, run, translate whatever is raised, count, log."""

    @web.middleware
    async def pass_through(request: web.Request, handler: Handler) -> web.StreamResponse:
        began = time.monotonic()
        caller = rules.caller(request)
        response: web.StreamResponse | None = None
        try:
            _authorise(caller, needed(request))
            response = await handler(request)
        except web.HTTPException as refusal:
            response = failure_response(problem_of(refusal))
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001  told to the client, and logged by `tell` where nobody foresaw it
            response = failure_response(error)
        finally:
            _account(request, caller, metrics, response, time.monotonic() - began)
        return response

    return pass_through


def _authorise(caller: Caller, needed: Role) -> None:
    if caller.role is None:
        raise Forbidden(f"{caller.name} has no role here; the agent's configuration gives roles", needed=needed.value)
    if not caller.role.allows(needed):
        raise Forbidden(
            f"this needs the role {needed}, and {caller.name} has {caller.role}",
            needed=needed.value,
            role=caller.role.value,
        )


def route_of(request: web.Request) -> str:
    """The route's template, never the path itself, which the client chooses."""
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unknown"


def _account(
    request: web.Request, caller: Caller, metrics: Metrics, response: web.StreamResponse | None, seconds: float
) -> None:
    status = response.status if response is not None else 499  # nginx's number for a client that went away
    route = route_of(request)
    method = request.method if request.method in _METHODS else "other"  # any token may stand there
    metrics.http_requests.labels(route, method, str(status)).inc()
    if route != EVENTS_PATH and "wait" not in request.query:
        metrics.http_seconds.labels(route).observe(seconds)
    changes = request.method in ("POST", "DELETE")
    log = _log.info if changes or status >= 400 else _log.debug
    log("request", method=method, route=route, status=status, caller=caller.name, ms=round(seconds * 1000, 1))
