"""HTTP as XAPI's data handlers need it, over a connection of `stores.transfer.wire`, whose bytes move in threads.

They answer before they read the body, and say nothing at the end but that the connection ends. aiohttp takes such an answer
for the end of the exchange, and stops sending.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from hypervisors.xen.hosts import Host, Trust
from stores.contract import KiB
from stores.errors import TlsFailed, Unavailable
from stores.transfer.threads import Threads
from stores.transfer.wire import Answer, Connection, ConnectionFailed

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. `head_s`: attaching a disk may take this long; `stall_s`: without a byte in either direction."""

    connect_s: float = 30.0
    head_s: float = 60.0
    stall_s: float = 120.0


class HostEnded(Exception):
    """The host ended the connection, or broke it: what that means is known by the task alone."""


class Exchange:
    """One request on a connection of its own. `abort` ends it at once, whatever it is at.

    What blocks says so, and is called in threads: those of `run`, or of whoever has the body.
    """

    def __init__(self, host: Host, connection: Connection, threads: Threads, patience: Patience) -> None:
        """For `connect`."""
        self.host = host
        self.sent = 0
        """Bytes of the body that the connection has taken."""
        self._connection = connection
        self._threads = threads
        self._patience = patience
        self._turn = threading.Lock()

    async def ask(self, line: str, headers: Mapping[str, str]) -> Answer:
        """Send the head of a request and wait for that of the answer. `Unavailable` where none comes."""
        text = "\r\n".join([line, *(f"{name}: {value}" for name, value in headers.items()), "", ""])
        try:
            async with asyncio.timeout(self._patience.head_s):
                answer = await self.run(partial(self._connection.exchange, text.encode("latin-1")))
        except TimeoutError as error:
            raise Unavailable(
                f"host {self.host} did not answer within {self._patience.head_s:g} s: it hangs, or a proxy waits for the body",
                host=str(self.host),
            ) from error
        except ConnectionFailed as error:
            raise Unavailable(
                f"host {self.host} ended the connection without an answer in HTTP: {error}", host=str(self.host)
            ) from error
        self._connection.wait_for(self._patience.stall_s)
        return answer

    async def run(self, call: Callable[[], T]) -> T:
        """What `call`, which uses this exchange and blocks, returns or raises. When cancelled, it is ended with the
        connection."""
        return await self._threads.run(call, abort=self.abort)

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """As `put`, without blocking."""
        await self.run(partial(self.put, memoryview(data)))

    def put(self, *parts: bytes | memoryview) -> None:
        """Sends `parts` with nothing between them, whoever else sends; they may be overwritten when this returns. `HostEnded`
        when the host has: what it says is never more than that. `Unavailable` when it takes nothing any more. Blocking."""
        with self._turn:
            try:
                if self._ended():
                    raise HostEnded
                for part in parts:
                    self._connection.send(memoryview(part))
                    self.sent += len(part)
            except ConnectionFailed as error:
                raise self._lost() from error

    def receive(self, view: memoryview) -> int:
        """Fills `view` and returns its length, or less at the end of the connection, which may be too early. `HostEnded` for
        a broken one, `Unavailable` when nothing comes. Blocking."""
        count = self._connection.receive(view)
        if count < len(view) and self._connection.trouble is not None:
            raise self._lost()
        return count

    async def end(self) -> None:
        """All has been sent: wait until the host ends the connection. That says nothing about success."""
        await self.run(self._until_eof)

    def abort(self) -> None:
        """From any thread."""
        self._connection.abort()

    async def close(self) -> None:
        """Nobody is at it any more. Idempotent."""
        self._connection.close()
        self._threads.close()

    def _until_eof(self) -> None:
        try:
            while self._connection.receive_some(KiB):
                pass
        except ConnectionFailed as error:
            raise self._lost() from error

    def _ended(self) -> bool:
        """Whether the host has ended the connection. Does not wait."""
        while self._connection.answered():
            if not self._connection.receive_some(KiB):
                return True
        return False

    def _lost(self) -> HostEnded | Unavailable:
        if not self._connection.stalled:
            return HostEnded()
        return Unavailable(
            f"host {self.host} moved no byte of the disk for {self._patience.stall_s:g} s", host=str(self.host)
        )


async def connect(host: Host, trust: Trust, patience: Patience) -> Exchange:
    """`Unavailable` or `TlsFailed` where there is no connection, or none to be trusted."""
    threads = Threads("xen-transfer", 1, bulk=True)
    connection: Connection | None = None
    try:
        async with asyncio.timeout(patience.connect_s):
            raw = await _reached(host)
            # The head has its own limit; whatever moves the disk is asked for after it.
            longest = max(patience.connect_s, patience.head_s, patience.stall_s)
            connection = Connection(
                raw, tls=trust.context(host), host=host.address, read_timeout_s=longest, ragged_end=True
            )
            certificate = await threads.run(connection.secure, abort=connection.abort)
        trust.check(host, certificate)
        return Exchange(host, connection, threads, patience)
    except BaseException as error:
        if connection is not None:
            connection.close()
        threads.close()
        match error:
            case ssl.SSLError():
                raise TlsFailed(f"no trusted TLS session with host {host}: {error}", host=str(host)) from error
            case TimeoutError():
                raise Unavailable(
                    f"host {host} took longer than {patience.connect_s:g} s to connect", host=str(host)
                ) from error
            case OSError():
                raise Unavailable(f"host {host} cannot be reached: {error}", host=str(host)) from error
        raise


async def _reached(host: Host) -> socket.socket:
    """A connected socket. asyncio resolves names, and tries one address after the other."""
    loop = asyncio.get_running_loop()
    if host.socket is not None:
        transport, _ = await loop.create_unix_connection(asyncio.Protocol, str(host.socket))
    else:
        transport, _ = await loop.create_connection(asyncio.Protocol, host.address, host.port)
    try:
        connected: socket.socket = transport.get_extra_info("socket").dup()
        return connected
    finally:
        transport.abort()
