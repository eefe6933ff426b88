"""The server itself: who may connect, what is asked on connect, and when an agent is taken for dead."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from tests.doubles.management_server.attached import API, AttachedAgent, Disconnected
from tests.doubles.management_server.authority import Authority
from tests.doubles.management_server.packets import Body, Elements, Link, Packet, Violation

STARTUPS = {
    f"{API}StartupRoutingCommand",
    f"{API}StartupProxyCommand",
    f"{API}StartupSecondaryStorageCommand",
    f"{API}StartupStorageCommand",
}
BEHIND = 2.5  # intervals without a word until an agent is taken for dead


class ManagementServer:
    """`async with ManagementServer() as server:` listens on 127.0.0.1:`server.port`.

    The attributes are read whenever they matter, so that a test may change them in between.
    """

    def __init__(self, authority: Authority, *, ping_interval: int = 60, context: ssl.SSLContext | None = None) -> None:
        self.authority = authority
        self.ping_interval = ping_interval  # s, as it is told
        self.behind_after: float | None = None  # s; None: what follows from the interval
        self.on_connect: Elements = []  # asked before Ready; a false answer of ModifyStoragePool is a refusal
        self.refuse: str | None = None  # why nobody is taken, in a ReadyCommand
        self.refuse_startup: str | None = None  # the same in the StartupAnswer
        self.overloaded = False  # closes straight after accept
        self.silent = False  # answers no ping
        self.reads = asyncio.Event()  # cleared, it takes nothing off the network
        self.reads.set()
        self.ready: Body = {}  # further fields of the second ReadyCommand, such as msHostList
        self.agents: list[AttachedAgent] = []  # every one that introduced itself, the gone as well
        self.connections = 0
        self.violations: list[str] = []
        self.discarded: list[Packet] = []  # what came before an introduction
        self.handshake_errors: list[str] = []
        self.clients: list[bytes | None] = []  # certificates of those who connected
        self.port = 0
        self.server_id = 345_051_498_372
        self._context = context or authority.server_context()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> Self:
        listener = socket.create_server(("127.0.0.1", self.port))
        listener.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024
        )  # so that one that does not read is felt soon
        self._server = await asyncio.start_server(self._serve, sock=listener)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def agent(self, number: int = 1, *, kind: str = "Routing", timeout: float = 20) -> AttachedAgent:
        """The `number`th agent of its kind that came Up, counted from the server's start."""
        async with asyncio.timeout(timeout), self._changed:
            await self._changed.wait_for(lambda: len(self._up(kind)) >= number)
            return self._up(kind)[number - 1]

    def _up(self, kind: str) -> Sequence[AttachedAgent]:
        return [agent for agent in self.agents if agent.up.is_set() and agent.startup[0][1].get("type") == kind]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        link = Link(reader, writer, self._context)
        try:
            if not self.overloaded:
                async with asyncio.timeout(30):
                    await link.handshake()
                self.clients.append(link.client)
                await self._attend(link)
        except (OSError, TimeoutError, ssl.SSLError) as error:
            self.handshake_errors.append(str(error))
        except EOFError:
            pass
        except (Violation, ValueError) as error:
            self.violations.append(str(error))
        except asyncio.CancelledError:
            return  # only `stop` cancels
        finally:
            link.close()
            self._tasks.discard(task)

    async def _attend(self, link: Link) -> None:
        """Until the agent is gone, or has to go."""
        introduction = await self._introduction(link)
        agent = AttachedAgent(link, self.server_id, 0, startup=introduction.elements)
        known = [other for other in self.agents if other.startup[0][1]["guid"] == agent.startup[0][1]["guid"]]
        agent.host_id = known[0].host_id if known else len({other.host_id for other in self.agents}) + 1
        self.agents.append(agent)
        async with asyncio.TaskGroup() as group:
            welcome = group.create_task(self._welcome(agent, introduction))
            try:
                await self._listen(agent)
            except EOFError:
                agent.leave("the agent closed the connection")
            except (OSError, Disconnected) as error:
                agent.leave(f"the connection broke: {error}")
            except (Violation, ValueError) as error:
                self.violations.append(str(error))
            finally:
                agent.leave(agent.reason or "the server closed the connection")
                welcome.cancel()

    async def _introduction(self, link: Link) -> Packet:
        while True:
            packet = await link.receive()
            if packet.is_request and packet.elements and packet.elements[0][0] in STARTUPS:
                return packet
            self.discarded.append(packet)

    async def _welcome(self, agent: AttachedAgent, introduction: Packet) -> None:
        result = self.refuse_startup is None
        answer: Body = {
            "result": result,
            "hostId": 0,
            "pingInterval": self.ping_interval,
            "hostName": "",
            "hostUuid": "",
        }
        if self.refuse_startup is not None:
            answer["details"] = self.refuse_startup
        await agent.respond(introduction, [(f"{API}StartupAnswer", answer)])
        if self.refuse_startup is not None:
            return
        if self.refuse is not None:
            await self._send_away(agent, self.refuse)
            return
        try:
            for command, body in self.on_connect:
                _, fields = await agent.ask(command, body)
                if command == f"{API}ModifyStoragePoolCommand" and not fields.get("result"):
                    await self._send_away(agent, f"Unable to connect host to storage pool: {fields.get('details')}")
                    return
            for extra in ({}, self.ready):
                body = {"dcId": 1, "hostId": agent.host_id, "hostUuid": "h-1", **extra}
                _, fields = await agent.ask(f"{API}ReadyCommand", body, in_sequence=True)
                if not fields.get("result"):
                    agent.leave("not ready")
                    return
        except Disconnected:
            return
        agent.up.set()
        async with self._changed:
            self._changed.notify_all()

    async def _send_away(self, agent: AttachedAgent, why: str) -> None:
        """Without the from-server flag, and with ids of nobody."""
        await agent.write(Packet(0, 0x01, [(f"{API}ReadyCommand", {"_details": why})]))

    async def _listen(self, agent: AttachedAgent) -> None:
        while True:
            await self.reads.wait()
            try:
                async with asyncio.timeout(self.behind_after or self.ping_interval * BEHIND):
                    packet = await agent.link.receive()
            except TimeoutError:
                agent.leave("behind on ping")
                return
            agent.received.append(packet)
            if not packet.is_request:
                await agent.answered(packet)
                continue
            name = packet.elements[0][0]
            if name.rpartition(".")[2].startswith("Ping"):
                if self.silent:
                    continue
                self._check_ping(agent, packet)
                await agent.pinged(packet)
            elif name in STARTUPS:
                agent.startup = packet.elements
                for host_id in (0, agent.host_id):  # answered twice
                    answer = {"result": True, "hostId": host_id, "pingInterval": self.ping_interval}
                    await agent.respond(packet, [(f"{API}StartupAnswer", answer)])
            elif name == f"{API}ShutdownCommand":
                agent.reason = f"shutdown: {packet.elements[0][1].get('reason')}"
                await agent.respond(packet, [(f"{API}Answer", {"result": True})])
                return

    def _check_ping(self, agent: AttachedAgent, packet: Packet) -> None:
        body = packet.elements[0][1]
        if agent.up.is_set() and (body.get("hostId") != agent.host_id or packet.agent_id != agent.host_id):
            self.violations.append(f"a ping of host {body.get('hostId')} on the link of host {agent.host_id}")
