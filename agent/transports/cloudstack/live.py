"""One connection, from the introduction to its end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial

import structlog

from agent.commands import Failure
from agent.failures import tell
from agent.transports.cloudstack.connection import Connection, Received
from agent.transports.cloudstack.contract import Role
from agent.transports.cloudstack.errors import LinkError, LinkLost
from agent.transports.cloudstack.json_codec import Decoded
from agent.transports.cloudstack.models import WireAnswer
from agent.transports.cloudstack.models_session import (
    MigrateAgentConnectionCommand,
    PingAnswer,
    ReadyCommand,
    SetupCertificateCommand,
    SetupMSListCommand,
    ShutdownCommand,
    StartupAnswer,
)
from agent.transports.cloudstack.requests import Requests
from agent.transports.cloudstack.servers import Server, Servers
from agent.transports.cloudstack.session import Phase, Session
from agent.transports.cloudstack.wire import Message

_log = structlog.get_logger(__name__)

REQUESTED = "requested"  # reasons of a ShutdownCommand: to come back at once,
STOPPED = "sig.kill"  # and because the agent stops
_GOODBYE_S = 2.0
_REACH_S = 5.0


class After(Enum):
    """What follows a connection."""

    RETRY = "retry"
    RECONNECT = "reconnect"  # at once
    TRANSFERRED = "transferred"  # at once, and the server knows that this is the same host
    PUT_AWAY = "put away"  # nothing: the server does not want this host any more


@dataclass(frozen=True, slots=True)
class Ending:
    after: After
    failure: Failure | None = None


class Live:
    """`run` is called once."""

    def __init__(
        self,
        connection: Connection,
        session: Session,
        role: Role,
        requests: Requests,
        servers: Servers,
        server: Server,
        *,
        transferred: bool,
        move_after_s: float,
        keep: Callable[[Session], Awaitable[None]],
        clock: Callable[[], float],
    ) -> None:
        """`keep` is called when the session was introduced or became ready. `move_after_s`: from answering an order to connect
        elsewhere until it is followed."""
        self._connection = connection
        self._session = session
        self._role = role
        self._requests = requests
        self._servers = servers
        self._server = server
        self._transferred = transferred
        self._move_after_s = move_after_s
        self._keep = keep
        self._clock = clock
        self._ended: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self._group = asyncio.TaskGroup()
        self._tasks: list[asyncio.Task[None]] = []
        self._returning = False
        self._introduced = asyncio.Event()

    async def run(self) -> Ending:
        """Until the connection is over, however that came about. Cancelled, it takes leave of the server first."""
        try:
            async with self._group:
                self._spawn(self._read())
                self._spawn(self._introduce())
                self._spawn(self._ping())
                try:
                    return await self._ended
                except asyncio.CancelledError:
                    await self._say_goodbye(STOPPED)
                    raise
                finally:
                    for task in self._tasks:
                        task.cancel()
        finally:
            await self._connection.close()

    def _spawn(self, work: Awaitable[None]) -> None:
        self._tasks.append(self._group.create_task(self._to_its_end(work)))

    async def _to_its_end(self, work: Awaitable[None]) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001  ends the connection and no other; `tell` logs what nobody foresaw
            self._end(After.RETRY, tell(error).failure)

    def _end(self, after: After, failure: Failure | None = None) -> None:
        if not self._ended.done():
            self._ended.set_result(Ending(after, failure))

    # ------------------------------------------------------------------------------------------ what we say

    async def _introduce(self) -> None:
        first, *others = self._role.introduction(self._connection.local_address)
        told = {"connectionTransferred": self._transferred, "msHostList": str(self._servers)}
        await self._connection.request([first.model_copy(update=told), *others], self._session.host_id)

    async def _ping(self) -> None:
        with contextlib.suppress(TimeoutError):  # `ping_due` judges how long it was
            async with asyncio.timeout(self._session.wait_s(self._clock())):
                await self._introduced.wait()
        while True:
            if self._requests.full:  # it is us who do not listen
                self._session.heard(self._clock())
            if self._session.ping_due(self._clock()):
                await self._send_ping()
            await asyncio.sleep(self._session.wait_s(self._clock()))

    async def _send_ping(self) -> None:
        """LinkLost where a server does not even read: then it would never be found silent."""
        host_id = self._session.host_id
        try:
            async with asyncio.timeout(self._session.patience_s):
                await self._connection.request([self._role.ping(host_id)], host_id)
        except TimeoutError:
            raise LinkLost(f"the management server {self._server} reads nothing", server=str(self._server)) from None

    async def _say_goodbye(self, reason: str) -> None:
        try:
            async with asyncio.timeout(_GOODBYE_S):
                await self._connection.request([ShutdownCommand(reason=reason)], self._session.host_id)
        except (LinkError, TimeoutError) as error:
            _log.debug("no leave was taken of a management server", server=str(self._server), error=str(error))

    # ----------------------------------------------------------------------------------------- what we hear

    async def _read(self) -> None:
        while (received := await self._connection.receive()) is not None:
            self._session.heard(self._clock())
            if received.message.is_request:
                await self._asked(received)
            else:
                await self._answered(received.items)
        raise LinkLost(f"the management server {self._server} closed the connection", server=str(self._server))

    async def _answered(self, items: Sequence[Decoded]) -> None:
        for item in items:
            match item:
                case StartupAnswer():
                    self._session.introduced(item, self._clock())
                    self._introduced.set()
                    await self._keep(self._session)
                case ReadyCommand():
                    self._session.ready(item)
                case PingAnswer():
                    if item.avoidMsList:
                        self._servers.avoid(item.avoidMsList)
                    if item.sendStartup:
                        await self._introduce()

    async def _asked(self, received: Received) -> None:
        message, items = received.message, received.items
        for item in items:
            if isinstance(item, ReadyCommand):
                first = self._session.phase is not Phase.READY
                self._session.ready(item)
                await self._keep(self._session)
                if first:
                    self._servers.succeeded()
                    _log.info(
                        "link ready", role=self._role.name, server=str(self._server), host_id=self._session.host_id
                    )
        await self._requests.room()
        self._requests.start(message, items, received.size, partial(self._tell, message, items))

    async def _tell(self, message: Message, items: Sequence[Decoded], answers: Sequence[WireAnswer]) -> None:
        """A command may have outlived its connection: then nobody waits for the answer."""
        try:
            if not self._ended.done():
                await self._connection.answer(message, answers)
        except LinkError as error:
            self._end(After.RETRY, tell(error).failure)
        if self._ended.done():
            _log.info("answer dropped", role=self._role.name, sequence=message.sequence)
            return
        for item, answer in zip(items, answers, strict=True):
            if answer.result:
                self._follow(item)

    # ------------------------------------------------------------------------------- what follows an answer

    def _follow(self, command: Decoded) -> None:
        match command:
            case ShutdownCommand():
                self._end(After.PUT_AWAY)
            case MigrateAgentConnectionCommand():
                self._spawn(self._move())
            case SetupCertificateCommand():
                self._spawn(self._renew())
            case SetupMSListCommand(triggerHostLb=True):
                self._spawn(self._return_to_preferred())
            case SetupMSListCommand() | ReadyCommand():
                if not self._returning and self._servers.check_interval_s:
                    self._returning = True
                    self._spawn(self._keep_returning())

    async def _move(self) -> None:
        """To the first server that can be reached; without one the connection stays."""
        await asyncio.sleep(self._move_after_s)
        for server in self._servers.others(self._server):
            if await _reachable(server):
                self._servers.go_to(server)
                self._end(After.TRANSFERRED)
                return
        _log.warning("link not moved", role=self._role.name, server=str(self._server))

    async def _renew(self) -> None:
        """Connect again as who the new certificate says, once nothing runs."""
        await self._requests.idle()
        await self._say_goodbye(REQUESTED)
        self._end(After.RECONNECT)

    async def _keep_returning(self) -> None:
        while self._servers.check_interval_s:
            await asyncio.sleep(self._servers.check_interval_s)
            if not len(self._requests):
                await self._return_to_preferred()
        self._returning = False

    async def _return_to_preferred(self) -> None:
        better = self._servers.better_than(self._server)
        if better is not None and await _reachable(better):
            self._servers.go_to(better)
            self._end(After.RECONNECT)


async def _reachable(server: Server) -> bool:
    try:
        async with asyncio.timeout(_REACH_S):
            _, writer = await asyncio.open_connection(server.host, server.port)
    except (OSError, TimeoutError):
        return False
    writer.transport.abort()
    return True
