"""One role's link to the management servers: kept up until it is told to end."""

from __future__ import annotations

import asyncio
import datetime
import random
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from cryptography import x509

from agent.failures import tell
from agent.transports.cloudstack.connection import Connection
from agent.transports.cloudstack.contract import Role, Watcher
from agent.transports.cloudstack.control import Control
from agent.transports.cloudstack.identity import IdentityStore
from agent.transports.cloudstack.live import After, Ending, Live
from agent.transports.cloudstack.models import WireAnswer, WireCommand
from agent.transports.cloudstack.servers import Servers
from agent.transports.cloudstack.session import Phase, Session
from agent.transports.cloudstack.state import StateDirectory
from agent.transports.cloudstack.tls import Identity, TlsChannel, Trust, client_context, connect
from stores.errors import StorageError

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class LinkSettings:
    """`pins` and `identity` are the configuration's; what the server provisions comes on top, and before. Times in seconds."""

    pins: tuple[x509.Certificate, ...] = ()
    identity: Identity | None = None
    unverified: bool = False
    connect_s: float = 30
    retry_first_s: float = 5
    retry_most_s: float = 60
    move_after_s: float = 3


@dataclass(frozen=True)
class LinkStatus:
    """For people and for monitoring."""

    role: str
    server: str
    phase: Phase | None  # None: not connected
    host_id: int
    running: int  # requests


class Link:
    """`run` is called once, and cancelled to stop."""

    def __init__(
        self,
        role: Role,
        servers: Servers,
        state: StateDirectory,
        settings: LinkSettings,
        *,
        watcher: Watcher,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._role = role
        self._servers = servers
        self._state = state
        self._settings = settings
        self._watcher = watcher
        self._clock = clock
        self._chance = chance
        self._identity = IdentityStore(state)
        self._control = Control(servers, self._identity, self._execute)
        self._session: Session | None = None
        self._host_id = -1

    @property
    def status(self) -> LinkStatus:
        phase = self._session.phase if self._session is not None else None
        server = str(self._servers.current())
        running = len(self._control.requests)
        return LinkStatus(self._role.name, server, phase, self._host_id, running)

    async def run(self) -> None:
        """Connect, and connect again. Returns only when the server puts the host away, and then not before what runs has ended.
        Cancelled: leaves in order, and cancels what runs."""
        self._host_id = await asyncio.to_thread(self._state.host_id)
        transferred = False
        async with self._control.requests:
            while True:
                ending = await self._once(transferred=transferred)
                self._session = None
                self._watcher.down(ending.failure)
                transferred = ending.after is After.TRANSFERRED
                if ending.after is After.PUT_AWAY:
                    _log.warning("link put away", role=self._role.name, host_id=self._host_id)
                    await self._control.requests.idle()
                    return
                if ending.after is After.RETRY:
                    self._servers.failed()
                    delay = self._servers.delay_s(
                        self._chance, first_s=self._settings.retry_first_s, most_s=self._settings.retry_most_s
                    )
                    reason = ending.failure.message if ending.failure is not None else ""
                    _log.warning("link down", role=self._role.name, error=reason, again_in_s=round(delay, 1))
                    await asyncio.sleep(delay)

    async def _once(self, *, transferred: bool) -> Ending:
        server = self._servers.current()
        try:
            channel = await self._connect(server.host, server.port)
        except StorageError as error:  # also of files that cannot be read: they may be back when it is tried again
            return Ending(After.RETRY, tell(error).failure)
        self._session = Session(self._clock(), self._host_id)
        live = Live(
            Connection(channel, self._watcher),
            self._session,
            self._role,
            self._control.requests,
            self._servers,
            server,
            transferred=transferred,
            move_after_s=self._settings.move_after_s,
            keep=self._keep,
            clock=self._clock,
        )
        return await live.run()

    async def _connect(self, host: str, port: int) -> TlsChannel:
        context, trust = await asyncio.to_thread(self._credentials)
        now = datetime.datetime.now(datetime.UTC)
        return await connect(host, port, context=context, trust=trust, timeout=self._settings.connect_s, now=now)

    def _credentials(self) -> tuple[ssl.SSLContext, Trust]:
        pins = (*self._settings.pins, *self._identity.pins())
        context = client_context(self._identity.identity() or self._settings.identity)
        return context, Trust(pins, unverified=self._settings.unverified and not pins)

    async def _execute(self, command: WireCommand, within_s: float) -> WireAnswer:
        return await self._role.execute(command, within_s=within_s)

    async def _keep(self, session: Session) -> None:
        if session.phase is Phase.READY:
            self._watcher.up()
        if session.host_id == self._host_id:
            return
        self._host_id = session.host_id
        try:
            await asyncio.to_thread(self._state.keep_host_id, session.host_id)
        except StorageError as error:  # the server says it again the next time
            _log.warning("host id not kept", role=self._role.name, host_id=session.host_id, error=error.message)
