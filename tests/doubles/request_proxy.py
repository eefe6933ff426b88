"""A proxy that knows requests from one another, and lets chosen ones go wrong: what no packaged server does to its clients."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from tests.doubles.loopback import LoopbackServer, reset

HEAD_LIMIT = 64 * 1024
_CHECKSUM = re.compile(rb"(?i)(x-amz-|</?)(checksum-?crc64nvme)")


class Fault(StrEnum):
    """What happens to a request. The first four never reach the server."""

    ERROR_500 = "answered 500"
    ERROR_503 = "answered 503"
    ERROR_IN_200 = "answered 200 with an error in its body"  # of PUT and POST; other requests pass
    CUT = "cut in the middle of the request"
    LATE_500 = "carried out and answered 500"
    LOST = "carried out and its answer lost"
    DEAD = "carried out, its answer lost, and nobody there any more"
    CORRUPT = "a byte of its body changed"
    DELAYED = "delayed"


@dataclass(frozen=True)
class Seen:
    method: str
    path: str


class RequestProxy(LoopbackServer):
    """`async with RequestProxy(port) as proxy:` listens on 127.0.0.1:`proxy.port` and connects to 127.0.0.1:`port`.

    `plan`: from the number of a request (from 1) and the request to what happens to it. `mute`: answers tell no checksums but
    ETags, as those of servers do that know none (radosgw).
    """

    def __init__(self, port: int) -> None:
        super().__init__()
        self._upstream = port
        self.plan: Callable[[int, Seen], Fault | None] = lambda number, request: None
        self.requests: list[Seen] = []
        self.mute = False
        self.dead = False

    def start_over(self) -> None:
        """Back to life, and counting from 1."""
        self.dead = False
        self.requests.clear()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not writer.is_closing():
            await self._pass_on(reader, writer)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if self.dead:
            reset(writer)
            return
        method, path, _ = head.split(b"\r\n")[0].decode("latin-1").split(" ")
        request = Seen(method, path)
        self.requests.append(request)
        fault = self.plan(len(self.requests), request)
        if fault is Fault.ERROR_IN_200 and method not in ("PUT", "POST"):
            fault = None
        length = _length(head)
        if b"100-continue" in head:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if fault is Fault.CUT:
            await reader.readexactly(length // 2)
            reset(writer)
            return
        body = await reader.readexactly(length)
        if fault in (Fault.ERROR_500, Fault.ERROR_503, Fault.ERROR_IN_200):
            status = {Fault.ERROR_500: 500, Fault.ERROR_503: 503}.get(fault, 200)
            writer.write(_error(status, with_body=method != "HEAD"))
            await writer.drain()
            return
        if fault is Fault.CORRUPT and body:
            body = body[:-1] + bytes([body[-1] ^ 0xFF])
        if fault is Fault.DELAYED:
            await asyncio.sleep(0.05)
        answer = await self._ask(head, body, method)
        if self.mute:
            answer = _CHECKSUM.sub(lambda found: found[1] + b"X" * len(found[2]), answer)
        if fault is Fault.DEAD:
            self.dead = True
        if fault in (Fault.LOST, Fault.DEAD):
            reset(writer)
            return
        writer.write(_error(500, with_body=method != "HEAD") if fault is Fault.LATE_500 else answer)
        await writer.drain()

    async def _ask(self, head: bytes, body: bytes, method: str) -> bytes:
        """The server's whole answer."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._upstream, limit=HEAD_LIMIT)
        try:
            writer.write(head + body)
            await writer.drain()
            while True:
                found = await reader.readuntil(b"\r\n\r\n")
                if not found.startswith(b"HTTP/1.1 1"):
                    break
            if method == "HEAD" or found.startswith(b"HTTP/1.1 204"):
                return found
            if b"transfer-encoding: chunked" not in found.lower():
                return found + await reader.readexactly(_length(found))
            chunks = [found]
            while not chunks[-1].startswith(b"0\r\n"):
                size = await reader.readuntil(b"\r\n")
                chunks.append(size + await reader.readexactly(int(size, 16) + 2))
            return b"".join(chunks)
        finally:
            writer.close()


def _length(head: bytes) -> int:
    match = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return int(match[1]) if match else 0


def _error(status: int, *, with_body: bool) -> bytes:
    text = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>by order</Message></Error>"
    body = text if with_body else b""
    return f"HTTP/1.1 {status} By Order\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
