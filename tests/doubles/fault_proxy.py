"""A TCP proxy that misbehaves on request: what no packaged server does to its clients.

It sits before a real server. Its rules are plain attributes, read on every chunk, so that a test may change them while a
transfer runs. They act on the bytes that flow down, from the server to the client, unless they say otherwise.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.doubles.loopback import LoopbackServer, reset

CHUNK = 64 * 1024


class FaultProxy(LoopbackServer):
    """`async with FaultProxy(port) as proxy:` listens on 127.0.0.1:`proxy.port` and connects to `host`:`port`."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        super().__init__()
        self._upstream = (host, port)
        self.cut_after: int | None = None  # RST towards the client after that many bytes of a connection
        self.cut_times: int | None = None  # so many times, then never again; None: always
        self.stall_after: int | None = None  # stop sending after that many bytes, connection kept open; None: go on
        self.flip_at: int | None = None  # invert one byte at this offset of a connection's answer
        self.rate: float | None = None  # bytes per second and connection
        self.rate_up: float | None = None  # the same from the client to the server
        self.refuse = False  # accept, then reset at once
        self.bytes_down = 0
        self.bytes_up = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self.refuse:
                reset(writer)
                return
            up_reader, up_writer = await asyncio.open_connection(*self._upstream)
            try:
                async with asyncio.TaskGroup() as pumps:
                    up = pumps.create_task(self._up(reader, up_writer))
                    await self._down(up_reader, writer)
                    up.cancel()
            finally:
                up_writer.close()
        except* (OSError, asyncio.IncompleteReadError):
            reset(writer)

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(CHUNK):
            writer.write(chunk)
            await writer.drain()
            self.bytes_up += len(chunk)
            if self.rate_up is not None:
                await asyncio.sleep(len(chunk) / self.rate_up)
        writer.write_eof()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent = 0
        while chunk := await reader.read(CHUNK):
            if self.flip_at is not None and sent <= self.flip_at < sent + len(chunk):
                at = self.flip_at - sent
                chunk = chunk[:at] + bytes([chunk[at] ^ 0xFF]) + chunk[at + 1 :]
            limit = self._limit()
            if limit is not None and sent + len(chunk) >= limit:
                first, chunk = chunk[: max(0, limit - sent)], chunk[max(0, limit - sent) :]
                writer.write(first)
                await writer.drain()
                sent += len(first)
                self.bytes_down += len(first)
                if self.cut_after is None or self.stall_after == limit:
                    while self.stall_after is not None:
                        await asyncio.sleep(0.02)
                else:
                    if self.cut_times is not None:
                        self.cut_times -= 1
                    reset(writer)
                    return
            writer.write(chunk)
            await writer.drain()
            sent += len(chunk)
            self.bytes_down += len(chunk)
            if self.rate is not None:
                await asyncio.sleep(len(chunk) / self.rate)
        writer.write_eof()

    def _limit(self) -> int | None:
        cut = self.cut_after if self.cut_times is None or self.cut_times > 0 else None
        limits = [limit for limit in (cut, self.stall_after) if limit is not None]
        return min(limits, default=None)


@contextmanager
def fault_proxy(port: int) -> Iterator[FaultProxy]:
    """One in a thread of its own, for tests that block: its rules may be changed from outside all the same."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="proxy")
    thread.start()
    proxy = FaultProxy(port)
    try:
        asyncio.run_coroutine_threadsafe(proxy.__aenter__(), loop).result()
        try:
            yield proxy
        finally:
            asyncio.run_coroutine_threadsafe(proxy.__aexit__(None, None, None), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
