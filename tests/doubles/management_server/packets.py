"""The server's side of TLS, link frames and message headers, on plain streams."""

from __future__ import annotations

import asyncio
import gzip
import json
import ssl
import struct
from dataclasses import dataclass
from typing import Any

Body = dict[str, Any]
Elements = list[tuple[str, Body]]
"""Class names and fields, as in the JSON array of a message."""

MAX_FRAME = 18_000
GZIP_FROM = 8192
REQUEST, STOP_ON_ERROR, IN_SEQUENCE, FROM_SERVER, COMPRESSED = 0x01, 0x02, 0x04, 0x20, 0x80
_HEADER = struct.Struct(">BBHqiqqq")


class Violation(Exception):
    """The agent did what makes a real server drop the connection."""


@dataclass
class Packet:
    sequence: int
    flags: int
    elements: Elements
    server_id: int = -1
    agent_id: int = -1
    via: int = -1
    compressed: bool = False
    raw: bytes | None = None  # what is sent in place of the elements

    @property
    def is_request(self) -> bool:
        return bool(self.flags & REQUEST)


def to_bytes(packet: Packet) -> bytes:
    text = packet.raw
    if text is None:
        text = json.dumps([{name: body} for name, body in packet.elements], separators=(",", ":")).encode()
    flags, size = packet.flags, len(text)
    if size >= GZIP_FROM:
        flags, text = flags | COMPRESSED, gzip.compress(text)
    return _HEADER.pack(0, 0, flags, packet.sequence, size, packet.server_id, packet.agent_id, packet.via) + text


def from_bytes(data: bytes) -> Packet:
    version, _, flags, sequence, size, server_id, agent_id, via = _HEADER.unpack_from(data)
    if version != 0:
        raise Violation(f"version {version}")
    text = data[_HEADER.size :]
    if flags & COMPRESSED:
        text = gzip.decompress(text)
    if len(text) != size:
        raise Violation(f"the size field says {size}, and the text has {len(text)} bytes")
    if not text.isascii():
        raise Violation("text that depends on the JVM's charset")
    elements = []
    for element in json.loads(text):
        ((name, body),) = element.items()
        elements.append((name, body))
    return Packet(sequence, flags & ~COMPRESSED, elements, server_id, agent_id, via, bool(flags & COMPRESSED))


class Link:
    """Messages of one agent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, context: ssl.SSLContext) -> None:
        self._reader = reader
        self._writer = writer
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)

    async def handshake(self) -> None:
        """Reads whatever is there. What came behind the last flight of the handshake is lost, as it is at a real server."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                data = await self._reader.read(65536)
                if not data:
                    raise ConnectionError("closed during the handshake") from None
                self._in.write(data)
            except ssl.SSLError:
                await self._flush()  # the alert says why
                raise
            else:
                break
        await self._flush()  # session tickets of TLS 1.3 as well: unframed
        self._in.read()

    @property
    def client(self) -> bytes | None:
        """The certificate that the agent showed (DER)."""
        return self._tls.getpeercert(binary_form=True)

    @property
    def version(self) -> str | None:
        return self._tls.version()

    async def receive(self) -> Packet:
        """EOFError when the agent closed."""
        message = bytearray()
        while True:
            try:
                (header,) = struct.unpack(">I", await self._reader.readexactly(4))
                if header & 0xFFFF > MAX_FRAME:
                    raise Violation(f"a frame of {header & 0xFFFF} bytes")
                self._in.write(await self._reader.readexactly(header & 0xFFFF))
            except asyncio.IncompleteReadError:
                raise EOFError from None
            try:
                plain = self._tls.read(65536)
            except ssl.SSLError as error:
                raise Violation(f"a frame without a whole record: {error}") from error
            if self._tls.pending() or self._in.pending:
                raise Violation("more than one record in a frame")
            message += plain
            if not header & 0x10000:
                return from_bytes(bytes(message))

    async def send(self, packet: Packet) -> None:
        data = to_bytes(packet)
        starts = range(0, len(data), 16384)
        for start in starts:
            self._tls.write(data[start : start + 16384])
            record = self._out.read()
            follows = 0x10000 if start != starts[-1] else 0
            self._writer.write(struct.pack(">I", len(record) | follows) + record)
            await self._writer.drain()

    def close(self) -> None:
        self._writer.transport.abort()

    async def _flush(self) -> None:
        self._writer.write(self._out.read())
        await self._writer.drain()
