"""The bytes of a transfer, which a fault may stop at a byte."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.doubles.xapi.disks import BLOCK, MiB
from tests.doubles.xapi.vhd import SECTOR

_FRAME = struct.Struct("<QI")


@dataclass
class Trip:
    """What happens when `at_byte` bytes have passed: `act` raises, or returns and the transfer goes on."""

    at_byte: int
    act: Callable[[], Awaitable[None]]
    acted: bool = False

    async def room(self, passed: int, most: int) -> int:
        """How many of `most` more bytes may pass now."""
        if self.acted:
            return most
        if passed >= self.at_byte:
            self.acted = True
            await self.act()
            return most
        return min(most, self.at_byte - passed)


class BadBody(Exception):
    """Not what the host's tools take: they end with an I/O error."""


class Incoming:
    """A request's body, to its Content-Length or, without one, as long as somebody reads."""

    def __init__(self, reader: asyncio.StreamReader, length: int | None, trip: Trip | None) -> None:
        self._reader = reader
        self._length = length
        self._trip = trip
        self.taken = 0

    async def some(self, most: int) -> bytes:
        """At least a byte, unless the body has ended."""
        if self._length is not None:
            most = min(most, self._length - self.taken)
        if self._trip is not None and most:
            most = await self._trip.room(self.taken, most)
        data = await self._reader.read(most)
        self.taken += len(data)
        return data

    async def exactly(self, count: int) -> bytes:
        parts, missing = [], count
        while missing:
            part = await self.some(missing)
            if not part:
                raise BadBody(f"the body ended {missing} bytes early")
            parts.append(part)
            missing -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def frames(self) -> list[tuple[int, bytes]]:
        """The next pieces (offset, data) of a frame in XenServer's own chunked form; none: that was the last frame."""
        offset, length = _FRAME.unpack(await self.exactly(_FRAME.size))
        if (offset, length) == (0, 0):
            return []
        if offset % SECTOR or length % SECTOR:
            raise BadBody(f"{length} bytes at {offset} are not whole sectors")
        pieces = []
        while length:
            data = await self.exactly(min(length, BLOCK))
            pieces.append((offset, data))
            offset, length = offset + len(data), length - len(data)
        return pieces or [(offset, b"")]


class Outgoing:
    """An answer's body."""

    def __init__(self, writer: asyncio.StreamWriter, trip: Trip | None) -> None:
        self._writer = writer
        self._trip = trip
        self.sent = 0

    async def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            count = min(len(view), MiB)
            if self._trip is not None:
                count = await self._trip.room(self.sent, count)
            self._writer.write(view[:count])
            await self._writer.drain()
            self.sent += count
            view = view[count:]
