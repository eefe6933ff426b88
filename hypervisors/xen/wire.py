"""HTTP as XAPI's data handlers need it, over plain asyncio streams.

They answer before they read the body, and say nothing at the end but that the connection ends. aiohttp takes such an answer
for the end of the exchange, and stops sending.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

from hypervisors.xen.hosts import Host, Trust
from stores.contract import MiB
from stores.errors import TlsFailed, Unavailable


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. `head_s`: attaching a disk may take this long; `stall_s`: without a byte in either direction."""

    connect_s: float = 30.0
    head_s: float = 60.0
    stall_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Head:
    status: int
    headers: Mapping[str, str]
    """By lower-case names."""


class HostEnded(Exception):
    """The host ended the connection, or broke it: what that means is known by the task alone."""


class Exchange:
    """One request on a connection of its own. `close` ends it at once, whatever it is at."""

    def __init__(
        self, host: Host, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, patience: Patience
    ) -> None:
        """For `connect`."""
        self.host = host
        self._reader = reader
        self._writer = writer
        self._patience = patience
        self._watch: asyncio.Task[None] | None = None

    async def ask(self, line: str, headers: Mapping[str, str]) -> Head:
        """Send the head of a request and wait for that of the answer. `Unavailable` where none comes."""
        text = "\r\n".join([line, *(f"{name}: {value}" for name, value in headers.items()), "", ""])
        try:
            async with asyncio.timeout(self._patience.head_s):
                self._writer.write(text.encode("latin-1"))
                await self._writer.drain()
                told = await self._reader.readuntil(b"\r\n\r\n")
        except TimeoutError as error:
            raise Unavailable(
                f"host {self.host} did not answer within {self._patience.head_s:g} s: it hangs, or a proxy waits for the body",
                host=str(self.host),
            ) from error
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError) as error:
            raise Unavailable(
                f"host {self.host} ended the connection without an answer", host=str(self.host)
            ) from error
        first, *lines = told.decode("latin-1").split("\r\n")
        status = first.split(" ")[1:2]
        if not first.startswith("HTTP/1.") or not status or not status[0].isdigit():
            raise Unavailable(f"host {self.host} does not answer in HTTP", host=str(self.host))
        pairs = [line.partition(":") for line in lines if ":" in line]
        return Head(int(status[0]), {name.strip().lower(): value.strip() for name, _, value in pairs})

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Returns when it may be overwritten. `HostEnded` when the host has: what it says is never more than that."""
        if self._watch is None:
            self._watch = asyncio.create_task(self._until_eof(), name="xapi answer")
        if self._watch.done():
            raise HostEnded
        try:
            self._writer.write(bytes(data))
            drained = asyncio.ensure_future(self._writer.drain())
            try:
                await asyncio.wait(
                    {drained, self._watch}, timeout=self._patience.stall_s, return_when=asyncio.FIRST_COMPLETED
                )
                if drained.done():
                    drained.result()
                elif self._watch.done():
                    raise HostEnded
                else:
                    raise self._stalled()
            finally:
                drained.cancel()
        except OSError as error:
            raise HostEnded from error

    async def end(self) -> None:
        """All has been sent: wait until the host ends the connection. That says nothing about success."""
        try:
            async with asyncio.timeout(self._patience.stall_s):
                await (self._watch if self._watch is not None else self._until_eof())
        except TimeoutError as error:
            raise self._stalled() from error
        except OSError as error:
            raise HostEnded from error

    async def _until_eof(self) -> None:
        while await self._reader.read(MiB):
            pass

    async def receive(self) -> bytes:
        """Some bytes; none at the end, which may be too early. `HostEnded` for a broken connection."""
        try:
            async with asyncio.timeout(self._patience.stall_s):
                return await self._reader.read(MiB)
        except TimeoutError as error:
            raise self._stalled() from error
        except OSError as error:
            raise HostEnded from error

    async def close(self) -> None:
        self._writer.transport.abort()
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait({self._watch})
            if not self._watch.cancelled():
                self._watch.exception()  # seen already, or of no interest any more

    def _stalled(self) -> Unavailable:
        return Unavailable(
            f"host {self.host} moved no byte of the disk for {self._patience.stall_s:g} s", host=str(self.host)
        )


async def connect(host: Host, trust: Trust, patience: Patience) -> Exchange:
    """`Unavailable` or `TlsFailed` where there is no connection, or none to be trusted."""
    try:
        async with asyncio.timeout(patience.connect_s):
            if host.socket is not None:
                reader, writer = await asyncio.open_unix_connection(host.socket, limit=MiB)
            else:
                reader, writer = await asyncio.open_connection(
                    host.address, host.port, ssl=trust.context(host), limit=MiB
                )
    except ssl.SSLError as error:
        raise TlsFailed(f"no trusted TLS session with host {host}: {error}", host=str(host)) from error
    except TimeoutError as error:
        raise Unavailable(
            f"host {host} took longer than {patience.connect_s:g} s to connect", host=str(host)
        ) from error
    except OSError as error:
        raise Unavailable(f"host {host} cannot be reached: {error}", host=str(host)) from error
    secured = writer.get_extra_info("ssl_object")
    try:
        trust.check(host, secured.getpeercert(binary_form=True) if secured is not None else None)
    except TlsFailed:
        writer.transport.abort()
        raise
    return Exchange(host, reader, writer, patience)
