"""The hosts' listeners: TLS on loopback, and dom0's socket for each."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.doubles.xapi import rpc, tls
from tests.doubles.xapi.dispatch import Dispatcher
from tests.doubles.xapi.errors import Dropped, Failure
from tests.doubles.xapi.faults import Fault
from tests.doubles.xapi.http import LIMIT, BadRequest, Request, answer, page, read_request, reset, stalled
from tests.doubles.xapi.transfers import EXPORT, IMPORT, Connection, DataHandlers
from tests.doubles.xapi.world import World

RPC_LIMIT = 300 * 1024
_RPC_PATHS = ("/", "/RPC2", "/jsonrpc", "/json")
_METHODS = {IMPORT: "PUT", EXPORT: "GET"}


@dataclass
class Host:
    """One host's listeners; `port` stays the same when it is stopped and started again."""

    number: int
    socket: Path
    context: ssl.SSLContext
    port: int = 0
    listeners: list[asyncio.Server] = field(default_factory=list)
    serving: dict[asyncio.Task[None], asyncio.StreamWriter] = field(default_factory=dict)


class Servers:
    """All hosts of a pool."""

    def __init__(self, world: World, dispatcher: Dispatcher, folder: Path) -> None:
        self._world = world
        self._dispatcher = dispatcher
        self._handlers = DataHandlers(world)
        self.hosts = [
            Host(number, folder / f"host-{number}.sock", ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
            for number in range(world.settings.hosts)
        ]
        for host in self.hosts:
            self.show(host.number, "own")

    def show(self, number: int, identity: tls.Identity) -> None:
        """The certificate for connections to come."""
        leaf = self._world.authority.leaf(f"host-{number}.pool.example", identity)
        tls.present(self.hosts[number].context, leaf)

    async def start(self, number: int) -> None:
        host = self.hosts[number]

        async def over_tcp(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._serve(host, reader, writer, local=False)

        async def over_socket(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._serve(host, reader, writer, local=True)

        tcp = await asyncio.start_server(over_tcp, "127.0.0.1", host.port, limit=LIMIT, ssl=host.context)
        host.port = tcp.sockets[0].getsockname()[1]
        host.listeners = [tcp, await asyncio.start_unix_server(over_socket, host.socket, limit=LIMIT)]

    async def stop(self, number: int) -> None:
        """No new connections, and the ones that were are reset."""
        host = self.hosts[number]
        for listener in host.listeners:
            listener.close()
        host.socket.unlink(missing_ok=True)
        await self.cut(number)
        host.listeners = []

    async def cut(self, number: int) -> None:
        """Reset all connections of a host, whatever they were at."""
        host = self.hosts[number]
        serving = dict(host.serving)
        for task, writer in serving.items():
            reset(writer)
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

    @property
    def connections(self) -> int:
        return sum(len(host.serving) for host in self.hosts)

    # ------------------------------------------------------------------------------------------------ connections

    async def _serve(
        self, host: Host, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, local: bool
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        host.serving[task] = writer
        connection = Connection(host.number, reader, writer, local)
        try:
            await self._early(self._world.faults.hit("connect", "start", host.number, ""), connection)
            while await self._request(connection):
                pass
        except Dropped:
            reset(writer)
        except (ConnectionError, ssl.SSLError):
            pass  # the client has gone
        except asyncio.CancelledError:
            return  # only `cut` cancels; Python 3.11's stream server logs a cancelled handler as an error
        finally:
            writer.close()
            with suppress(ConnectionError, ssl.SSLError, asyncio.CancelledError):
                await writer.wait_closed()
            del host.serving[task]

    async def _request(self, connection: Connection) -> bool:
        """One request and its answer; whether there may be another one."""
        try:
            request = await read_request(connection.reader)
        except BadRequest as error:
            await connection.send(page(500, str(error)))
            return False
        if request is None:
            return False
        if request.path in _METHODS:
            if request.method != _METHODS[request.path]:
                await connection.send(page(501, "Method not implemented"))
                return False
            await self._handlers.handle(connection, request)
            return False
        if request.path in _RPC_PATHS:
            if request.method != "POST":
                await connection.send(page(501, "Method not implemented"))
                return False
            return await self._rpc(connection, request)
        await connection.send(page(404, "Not found"))
        return False

    async def _rpc(self, connection: Connection, request: Request) -> bool:
        length = request.content_length
        if length is None or length > RPC_LIMIT:
            await connection.send(page(500 if length is None else 413, "the body's length is not acceptable"))
            return False
        try:
            body = await connection.reader.readexactly(length)
        except asyncio.IncompleteReadError:
            return False
        try:
            call = rpc.parse(request.path, body, json_numbers=self._world.json_numbers)
        except rpc.Malformed as error:
            await connection.send(page(500, str(error)))
            return False
        session = call.params[0] if call.params else None
        fault = self._world.faults.hit("rpc", "start", connection.host, call.method)
        try:
            if fault is not None and fault.action == "fail":
                raise Failure(*fault.error)
            if fault is not None and fault.action == "lose-session":
                self._world.sessions.drop(str(session))
            elif await self._early(fault, connection):
                return False
            value = await self._dispatcher.call(connection.host, call.method, call.params, local=connection.local)
            told = call.success(value)
        except Failure as failure:
            told = call.failure(failure)
        if await self._early(self._world.faults.hit("rpc", "answer", connection.host, call.method), connection):
            return False
        await connection.send(answer(200, told, call.content_type, keep_alive=request.keep_alive))
        return request.keep_alive

    async def _early(self, fault: Fault | None, connection: Connection) -> bool:
        """What a fault does to a connection or a call; whether an answer has been given."""
        if fault is None:
            return False
        if fault.action == "delay":
            await asyncio.sleep(fault.seconds)
            return False
        if fault.action == "http":
            await connection.send(page(fault.status, "as told"))
            return True
        if fault.action == "garbage":
            await connection.send(answer(200, b'{"jsonrpc": "2.0", "resu', "application/json", keep_alive=False))
            return True
        if fault.action == "hang":
            await stalled(connection.reader, connection.writer, fault.seconds)
        raise Dropped
