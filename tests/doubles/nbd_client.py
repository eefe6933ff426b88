"""An NBD client that also does what good clients do not."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

STRUCTURED, SET_META, GO = 8, 10, 7
READ, WRITE, DISC, TRIM, WRITE_ZEROES, BLOCK_STATUS = 0, 1, 2, 4, 6, 7


def option(number: int, data: bytes = b"") -> bytes:
    return b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data


@dataclass
class Reply:
    """All of one reply. `error` is an NBD error number, 0 for success."""

    error: int = 0
    data: dict[int, bytes] = field(default_factory=dict)  # by offset; for a simple reply the whole at the request's
    holes: dict[int, int] = field(default_factory=dict)
    status: list[tuple[int, int]] = field(default_factory=list)  # length, flags


class NbdClient:
    """Speaks for one connection; replies are collected one after another, by whoever waits."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.structured = False
        self._cookie = 0

    async def negotiate(self, *, structured: bool = True, export: str = "") -> None:
        assert (await self.reader.readexactly(18))[:16] == b"NBDMAGICIHAVEOPT"
        self.writer.write(struct.pack(">I", 3))
        name = struct.pack(">I", len(export)) + export.encode()
        self.structured = structured
        if structured:
            query = struct.pack(">II", 1, 15) + b"base:allocation"
            self.writer.write(option(STRUCTURED) + option(SET_META, name + query))
        self.writer.write(option(GO, name + b"\x00\x00"))
        while True:
            _, number, kind, length = struct.unpack(">QIII", await self.reader.readexactly(20))
            await self.reader.readexactly(length)
            assert kind < 1 << 31, f"option {number} was refused: {kind:#x}"
            if (number, kind) == (GO, 1):
                return

    def send(self, command: int, offset: int = 0, length: int = 0, *, flags: int = 0, payload: bytes = b"") -> int:
        """Send a request; its cookie."""
        self._cookie += 1
        head = struct.pack(">IHHQQI", 0x25609513, flags, command, self._cookie, offset, length)
        self.writer.write(head + payload)
        return self._cookie

    async def reply(self, expected: int = 0) -> tuple[int, Reply]:
        """The next whole reply and its cookie. `expected` bytes follow a successful simple reply."""
        reply = Reply()
        while True:
            (magic,) = struct.unpack(">I", await self.reader.readexactly(4))
            if magic == 0x67446698:
                reply.error, cookie = struct.unpack(">IQ", await self.reader.readexactly(12))
                if not reply.error:
                    reply.data[0] = await self.reader.readexactly(expected)
                return cookie, reply
            assert magic == 0x668E33EF
            flags, kind, cookie, length = struct.unpack(">HHQI", await self.reader.readexactly(16))
            self._take(reply, kind, await self.reader.readexactly(length))
            if flags & 1:
                return cookie, reply

    @staticmethod
    def _take(reply: Reply, kind: int, content: bytes) -> None:
        if kind == 1:
            reply.data[struct.unpack_from(">Q", content)[0]] = content[8:]
        elif kind == 2:
            offset, length = struct.unpack(">QI", content)
            reply.holes[offset] = length
        elif kind == 5:
            words = struct.unpack(f">{len(content) // 4}I", content)[1:]
            reply.status = list(zip(words[::2], words[1::2], strict=True))
        elif kind == 0x8001:
            (reply.error,) = struct.unpack_from(">I", content)
        else:
            assert kind == 0

    async def ask(
        self, command: int, offset: int = 0, length: int = 0, *, flags: int = 0, payload: bytes = b""
    ) -> Reply:
        """One request and its reply."""
        sent = self.send(command, offset, length, flags=flags, payload=payload)
        cookie, reply = await self.reply(length if command == READ else 0)
        assert cookie == sent
        return reply

    async def closed_by_server(self) -> bytes:
        """What the server still said before it closed."""
        try:
            return await self.reader.read()
        except ConnectionError:
            return b""


@asynccontextmanager
async def connected(socket: Path) -> AsyncIterator[NbdClient]:
    """A connection on which nothing was said yet."""
    reader, writer = await asyncio.open_unix_connection(socket)
    try:
        yield NbdClient(reader, writer)
    finally:
        writer.transport.abort()
        await asyncio.sleep(0)


@asynccontextmanager
async def negotiated(socket: Path, *, structured: bool = True) -> AsyncIterator[NbdClient]:
    async with connected(socket) as client:
        await client.negotiate(structured=structured)
        yield client
