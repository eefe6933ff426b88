"""An NBD server that answers as a test tells it to, and counts who comes and goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from stores.bridge.negotiation import Negotiation, Phase
from stores.bridge.wire import INFO_BLOCK_SIZE, MAX_PAYLOAD, Command, Info, Request, RequestParser

Answer = Callable[[Request], bytes]
"""What is sent in answer to a request. Nothing (b"") is silence."""


@dataclass
class ScriptedNbd:
    """`size` bytes under the name "disk", negotiated properly unless `greeting` says otherwise."""

    socket: Path
    answer: Answer
    size: int
    greeting: bytes | None = None
    max_request: int = MAX_PAYLOAD
    hang_up: bool = False
    """Close each connection after its first answer."""
    open: int = 0
    most: int = 0
    left: int = 0
    """Connections of which clients took leave."""
    requests: list[Request] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            with suppress(ConnectionError):
                await self._talk(reader, writer)
        finally:
            self.open -= 1
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        negotiation = Negotiation("disk", self.size, 4096)
        writer.write(negotiation.greeting if self.greeting is None else self.greeting)
        parser = RequestParser()
        while data := await reader.read(64 * 1024):
            if negotiation.phase is not Phase.TRANSMISSION:
                ours, told = (
                    INFO_BLOCK_SIZE.pack(Info.BLOCK_SIZE, 1, 4096, n) for n in (MAX_PAYLOAD, self.max_request)
                )
                writer.write(negotiation.feed(data).replace(ours, told))
                continue
            for request in parser.feed(data):
                if request.command == Command.DISC:
                    self.left += 1
                    return
                self.requests.append(request)
                writer.write(self.answer(request))
                if self.hang_up:
                    return
            await writer.drain()


@asynccontextmanager
async def scripted(
    socket: Path, answer: Answer, *, size: int, greeting: bytes | None = None, max_request: int = MAX_PAYLOAD
) -> AsyncIterator[ScriptedNbd]:
    """Such a server, until the context ends; then every client must have gone."""
    server = ScriptedNbd(socket, answer, size, greeting, max_request)
    listener = await asyncio.start_unix_server(server.serve, socket)
    try:
        yield server
    finally:
        listener.close()
        await listener.wait_closed()
        async with asyncio.timeout(10):
            while server.open:
                await asyncio.sleep(0.001)
        socket.unlink()
