"""The bytes of a transfer, which a fault may stop at a byte."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from tests.doubles.xapi.disks import BLOCK
from tests.doubles.xapi.vhd import SECTOR

_FRAME = struct.Struct("<QI")
_STEP = 256 << 10
"""What is read or written at once: it stays in the processor's cache while TLS is put around it or taken off."""


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
        self._room = memoryview(bytearray(BLOCK))
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

    async def exactly(self, count: int) -> memoryview:
        """Valid until the next bytes are taken, if there are more than a sector of them."""
        room = self._room[:count] if SECTOR < count <= BLOCK else memoryview(bytearray(count))
        at = 0
        while at < count:
            part = await self.some(min(count - at, _STEP))
            if not part:
                raise BadBody(f"the body ended {count - at} bytes early")
            room[at : at + len(part)] = part
            at += len(part)
        return room

    async def frames(self) -> AsyncIterator[tuple[int, memoryview]]:
        """Offset and data of the frames of XenServer's own chunked form, in pieces that are valid until the next, up to the
        last frame, which is empty."""
        while True:
            offset, length = _FRAME.unpack(await self.exactly(_FRAME.size))
            if (offset, length) == (0, 0):
                return
            if offset % SECTOR or length % SECTOR:
                raise BadBody(f"{length} bytes at {offset} are not whole sectors")
            if not length:
                yield offset, memoryview(b"")
            while length:
                data = await self.exactly(min(length, BLOCK))
                yield offset, data
                offset, length = offset + len(data), length - len(data)


class Outgoing:
    """An answer's body."""

    def __init__(self, writer: asyncio.StreamWriter, trip: Trip | None) -> None:
        self._writer = writer
        self._trip = trip
        self.sent = 0

    async def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            count = min(len(view), _STEP)
            if self._trip is not None:
                count = await self._trip.room(self.sent, count)
            self._writer.write(view[:count])
            await self._writer.drain()
            self.sent += count
            view = view[count:]
