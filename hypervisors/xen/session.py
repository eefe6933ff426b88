"""One session with a pool: whose coordinator may change, and which may end at any time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import structlog

from hypervisors.passwords import current
from hypervisors.xen.errors import HOST_IS_SLAVE, SESSION_INVALID, XapiFailure, XapiRefused
from hypervisors.xen.hosts import Host, known
from hypervisors.xen.xapi import NotConnected, Xapi
from stores.errors import StorageError, Unavailable
from stores.secret import Secret

_log = structlog.get_logger(__name__)

_API_VERSION = "1.0"
_LOGOUT_S = 10.0


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """`ref` is as good as the password while it lasts."""

    host: Host
    ref: Secret


class _Again(Exception):
    """A call failed with `problem`, and may be made once more: with another session, if one is `stale`."""

    def __init__(self, problem: StorageError, stale: Session | None) -> None:
        super().__init__(problem.message)
        self.problem = problem
        self.stale = stale


class PoolClient:
    """XAPI's calls to whichever host is coordinator. `async with` logs out at the end.

    Any number of calls may be under way. They share one session: the first one that finds it invalid logs in again, and the
    others wait for that. `originator` has to be this agent's alone, because XAPI drops the oldest of too many sessions of
    one.
    """

    def __init__(
        self,
        xapi: Xapi,
        hosts: Sequence[Host],
        user: str,
        password: Secret | Path,
        *,
        originator: str,
        timeout_s: float = 300.0,
        pause_s: float = 1.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """`hosts`: all of the pool's that may be talked to. `password`: or the file that holds it. `timeout_s` is long because
        XAPI lets calls wait rather than refusing them. `pause_s`: before the second attempt, twice as long before the third."""
        self.hosts = tuple(hosts)
        self._xapi = xapi
        self._user = user
        self._password = password
        self._originator = originator
        self._timeout_s = timeout_s
        self._pause_s = pause_s
        self._sleep = sleep
        self._login: asyncio.Task[Session] | None = None
        self._closed = False
        self._session: Session | None = None
        self._coordinator = self.hosts[0]
        self._problem: StorageError | None = None

    @property
    def coordinator(self) -> Host | None:
        """The host where the session is; None before the first call, and while no host can be talked to."""
        return self._session.host if self._session is not None and self._problem is None else None

    @property
    def problem(self) -> StorageError | None:
        """Why no host can be talked to, as far as is known."""
        return self._problem

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        if self._login is not None:  # given up, it would leave a session that nobody knows
            login = self._login
            await asyncio.wait([login], timeout=_LOGOUT_S)
            login.cancel()
            await asyncio.wait([login])
        session, self._session = self._session, None
        if session is not None:
            await self._logout(session.host, session)

    async def _logout(self, host: Host, session: Session) -> None:
        try:
            await self._xapi.call(host, "session.logout", [session.ref], timeout_s=_LOGOUT_S)
        except (NotConnected, StorageError) as problem:
            # It is invalid already, or XAPI forgets it after a day without use.
            _log.debug("xapi logout failed", host=str(host), error=str(problem))

    async def call(self, method: str, *params: Any, timeout_s: float | None = None) -> Any:
        """The result of `method`; the session is put before `params`.

        What was surely not carried out is tried again, three times in all: no connection, no session, no coordinator. So are
        getters, whatever happened. `Unavailable` of other calls leaves open whether they were carried out.
        """
        stale: Session | None = None
        for pause in (self._pause_s, 2 * self._pause_s):
            try:
                return await self._attempt(method, params, stale, timeout_s or self._timeout_s)
            except _Again as again:
                stale = again.stale
                await self._sleep(pause)
        try:
            return await self._attempt(method, params, stale, timeout_s or self._timeout_s)
        except _Again as again:
            raise again.problem from again

    async def _attempt(self, method: str, params: Sequence[Any], stale: Session | None, timeout_s: float) -> Any:
        try:
            session = await self.session(instead_of=stale)
        except NotConnected as problem:
            raise _Again(problem.error, stale) from problem
        except Unavailable as problem:
            raise _Again(problem, stale) from problem
        try:
            result = await self._xapi.call(session.host, method, [session.ref, *params], timeout_s=timeout_s)
            self._problem = None
            return result
        except NotConnected as problem:
            raise _Again(problem.error, session) from problem
        except XapiFailure as problem:
            if problem.code not in (SESSION_INVALID, HOST_IS_SLAVE):
                raise
            raise _Again(problem, session) from problem
        except Unavailable as problem:
            if not _only_reads(method):
                raise
            raise _Again(problem, stale) from problem

    async def session(self, *, instead_of: Session | None = None) -> Session:
        """The session that there is, or a new one where there is none but `instead_of`. Who is cancelled waits no longer; the
        session is there for whoever comes next."""
        if self._login is None:
            if self._closed:
                raise _closed()
            if self._session is not None and self._session is not instead_of:
                return self._session
            self._login = asyncio.create_task(self._renewed(), name="xapi login")
        return await asyncio.shield(self._login)

    async def _renewed(self) -> Session:
        try:
            old, self._session = self._session, await self._logged_in()
            if old is not None:  # which another coordinator may know as well
                await self._logout(self._session.host, old)
            return self._session
        except (NotConnected, StorageError) as problem:
            self._problem = problem.error if isinstance(problem, NotConnected) else problem
            raise
        except asyncio.CancelledError as closed:  # by `__aexit__` alone; who waits for it is not cancelled
            raise _closed() from closed
        finally:
            self._login = None

    async def _logged_in(self) -> Session:
        """Asks the hosts in turn, and follows the first that knows the coordinator."""
        problem: NotConnected | None = None
        for first in dict.fromkeys((self._coordinator, *self.hosts)):
            try:
                session = await self._logged_in_by(first)
            except NotConnected as error:
                problem = error
                continue
            self._coordinator = session.host
            return session
        assert problem is not None, "a pool has hosts"
        raise problem

    async def _logged_in_by(self, host: Host) -> Session:
        password = await current(self._password)
        for _ in range(len(self.hosts) + 1):
            try:
                params = [self._user, password, _API_VERSION, self._originator]
                ref = await self._xapi.call(host, "session.login_with_password", params, timeout_s=self._timeout_s)
                return Session(host, Secret(str(ref)))
            except XapiFailure as problem:
                if problem.code != HOST_IS_SLAVE:
                    raise
                host = self._known(problem.params[0] if problem.params else "", problem)
        raise Unavailable("every host names another one as coordinator: the pool is electing one, or is split")

    def _known(self, address: str, problem: XapiFailure) -> Host:
        """Nobody else gets the password, whatever a host says."""
        host = known(address, self.hosts)
        if host is None:
            raise XapiRefused(
                f"the pool's coordinator is {address or 'unknown'}, which is not among the configured hosts; add it",
                code=problem.code,
                params=problem.params,
            ) from problem
        return host


def _closed() -> Unavailable:
    return Unavailable("the connection to the pool is being closed")


def _only_reads(method: str) -> bool:
    return method.partition(".")[2].startswith("get_")
