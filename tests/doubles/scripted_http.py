"""An HTTP/1.1 server for one object that answers by a script: what no real server does, or not when a test wants it."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.doubles.loopback import LoopbackServer


@dataclass(frozen=True)
class Request:
    path: str
    headers: dict[str, str]

    @property
    def range(self) -> tuple[int, int] | None:
        """First and last byte, inclusive."""
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", ""))
        return (int(match[1]), int(match[2])) if match else None


Step = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]
"""Answers one request; the connection is closed after it when it closed the writer."""


class ScriptedServer(LoopbackServer):
    """`async with ScriptedServer(content) as server:` listens on 127.0.0.1:`server.port`.

    Each request takes the next step of `script`; when that is used up, `always`; without one the honest answer.
    """

    def __init__(self, content: bytes, etag: str = '"v1"') -> None:
        super().__init__()
        self.content = content
        self.etag = etag
        self.script: deque[Step] = deque()
        self.always: Step | None = None
        self.requests: list[Request] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not writer.is_closing():
            head = await reader.readuntil(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").strip().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            request = Request(first.split(" ")[1], headers)
            self.requests.append(request)
            step = self.script.popleft() if self.script else self.always or self.honest
            await step(request, writer)
            await writer.drain()

    async def honest(self, request: Request, writer: asyncio.StreamWriter) -> None:
        if request.headers.get("if-match", self.etag) != self.etag:
            writer.write(b"HTTP/1.1 412 Precondition Failed\r\nContent-Length: 0\r\n\r\n")
            return
        writer.write(self.head(request) + self.part(request))

    def part(self, request: Request) -> bytes:
        first, last = request.range or (0, len(self.content) - 1)
        return self.content[first : last + 1]

    def head(self, request: Request, **changed: str) -> bytes:
        """Status line and headers of the honest answer; `changed` replaces headers, underscores for dashes."""
        part = self.part(request)
        headers = {"Content-Length": str(len(part)), "ETag": self.etag}
        if request.range is not None:
            first = request.range[0]
            headers["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(self.content)}"
        headers |= {name.replace("_", "-"): value for name, value in changed.items()}
        status = "206 Partial Content" if request.range else "200 OK"
        lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers.items() if value)]
        return "\r\n".join([*lines, "", ""]).encode()

    def with_headers(self, **changed: str) -> Step:
        """The honest body under changed headers; an empty value removes one."""

        async def step(request: Request, writer: asyncio.StreamWriter) -> None:
            writer.write(self.head(request, **changed) + self.part(request))

        return step

    def breaking_off(self, count: int) -> Step:
        """The honest answer, of which only `count` bytes of body come before the connection is closed."""

        async def step(request: Request, writer: asyncio.StreamWriter) -> None:
            writer.write(self.head(request) + self.part(request)[:count])
            await writer.drain()
            writer.close()

        return step

    def dripping(self, count: int, pause_s: float) -> Step:
        """The honest answer, `count` bytes at a time."""

        async def step(request: Request, writer: asyncio.StreamWriter) -> None:
            writer.write(self.head(request))
            body = self.part(request)
            for start in range(0, len(body), count):
                writer.write(body[start : start + count])
                await writer.drain()
                await asyncio.sleep(pause_s)

        return step


def status(code: int, *headers: str, body: bytes = b"") -> Step:
    """An answer without content."""

    async def step(request: Request, writer: asyncio.StreamWriter) -> None:
        lines = [f"HTTP/1.1 {code} Said So", f"Content-Length: {len(body)}", *headers, "", ""]
        writer.write("\r\n".join(lines).encode() + body)

    return step


def raw(data: bytes) -> Step:
    """These bytes, then the end of the connection."""

    async def step(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        writer.close()

    return step


async def silence(request: Request, writer: asyncio.StreamWriter) -> None:
    """No answer at all, on an open connection."""
    await asyncio.Event().wait()
