"""The connections to one export: made when needed, kept while idle, never more than are of use."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from hypervisors.nbd.connection import Connection
from hypervisors.nbd.negotiation import Export
from hypervisors.nbd.servers import Server
from stores.contract import BlockingCalls
from stores.errors import ObjectChanged, StoreError, Unavailable
from stores.secret import Secret


class Connections:
    """For the event loop's thread.

    A connection either reads or asks about one context: asked about several at once, a server computes all of them each
    time. One more for each context is beside those that read, so that neither waits for the other.
    """

    def __init__(
        self, server: Server, name: str | Secret, *, most: int, stall_s: float, threads: BlockingCalls
    ) -> None:
        """`most`: how many may read at once, where the server allows more than one connection."""
        self.what = f"NBD export {name!r} on {server}"
        self.parallel = 1
        self._server = server
        self._name = name
        self._most = most
        self._stall_s = stall_s
        self._threads = threads
        self._export: Export | None = None
        self._reading = self._asking = asyncio.Semaphore(1)
        self._idle: list[tuple[str | None, Connection]] = []

    async def probe(self) -> Export:
        """The export. To be called once, before all else."""
        connection, export, _ = await self._open(None)
        self._export = export
        self._idle.append((None, connection))
        if export.many_connections:
            self.parallel = self._most
            self._reading = asyncio.Semaphore(self._most)
            self._asking = asyncio.Semaphore(1)
        return export

    async def has(self, context: str) -> bool:
        """Whether the server can be asked about it. Keeps the connection, if so."""
        async with self._asking:
            self._make_room(context)
            connection, _, found = await self._open(context)
            if found:
                self._idle.append((context, connection))
            else:
                connection.leave()
            return found

    @asynccontextmanager
    async def taken(self, context: str | None) -> AsyncIterator[Connection]:
        """A connection for one caller: None for reading. If the caller fails, it is closed."""
        async with self._asking if context else self._reading:
            connection = await self._take(context)
            try:
                yield connection
            except BaseException:
                connection.close()
                raise
            self._idle.append((context, connection))

    def close(self) -> None:
        """Closes what is idle."""
        while self._idle:
            self._idle.pop()[1].leave()

    async def _take(self, context: str | None) -> Connection:
        for number, (kind, connection) in enumerate(self._idle):
            if kind == context:
                del self._idle[number]
                return connection
        self._make_room(context)
        return (await self._open(context))[0]

    def _make_room(self, context: str | None) -> None:
        """Where the server allows one connection only, a new one takes the place of an idle one of another kind."""
        if self.parallel == 1:
            for kept in [kept for kept in self._idle if kept[0] != context]:
                self._idle.remove(kept)
                kept[1].leave()

    async def _open(self, context: str | None) -> tuple[Connection, Export, bool]:
        connection = Connection(await self._connected(), self.what, self._stall_s, self._server.tls)
        try:
            negotiate = partial(connection.negotiate, self._name, context)
            export, found = await self._threads.run(negotiate, abort=connection.abort)
            if self._export is not None and (export.size, export.flags) != (self._export.size, self._export.flags):
                raise ObjectChanged(
                    f"{self.what} had {self._export.size} bytes and has {export.size}: it is another one now",
                    needed=self._export.size,
                    seen=export.size,
                )
        except BaseException:
            connection.close()
            raise
        return connection, export, found

    async def _connected(self) -> socket.socket:
        try:
            async with asyncio.timeout(self._stall_s):
                return await self._server.connected()
        except TimeoutError as error:
            raise Unavailable(f"{self.what}: the server accepted no connection for {self._stall_s:g} s") from error
        except StoreError as error:
            raise type(error)(f"{self.what}: {error.message}") from error
