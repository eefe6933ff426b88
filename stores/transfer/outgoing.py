"""Memory for streams on their way out: what they hold comes once, and is kept until somebody else has it."""

from __future__ import annotations

import asyncio
import mmap

from stores.contract import MiB

OUTGOING = 24 * MiB


class Outgoing:
    """`limit` bytes that all streams share, apart from the buffers of readers: a stream that waits for memory must not keep
    what its own source needs to go on.

    Each stream has one buffer always, so that none ever waits for another; what is left of the limit makes them faster. So
    they have `limit` bytes in all, or one buffer each where that is more: 40 MiB for eight streams with parts of 5 MiB. A
    stream that begins while others have all of it comes on top, until those have sent what they have beyond one. How
    long a buffer is, is the streams' affair, and not bounded here: 5 MiB for an object of any size in S3
    (`stores.backends.s3_parts.Cut`). For the event loop's thread.
    """

    def __init__(self, limit: int = OUTGOING) -> None:
        self._limit = limit
        self.used = 0

    @property
    def left(self) -> int:
        """Bytes within the limit that nobody has."""
        return max(0, self._limit - self.used)

    @property
    def pressed(self) -> bool:
        """Whether more is out than the limit: whoever has more than one buffer should give one back."""
        return self.used > self._limit

    def take(self, size: int) -> None:
        """`size` bytes for a stream's one buffer, also beyond the limit."""
        self.used += size

    def release(self, size: int) -> None:
        """Gives back."""
        self.used -= size


class Share:
    """What one stream has of it: buffers of one length at a time. For the event loop's thread."""

    def __init__(self, outgoing: Outgoing) -> None:
        self._outgoing = outgoing
        self._length = 0
        self._free: list[memoryview] = []
        self._out = 0
        self._returned = asyncio.Event()

    async def take(self, length: int) -> memoryview:
        """`length` bytes with any content. Where there are buffers already, and no more are to be had, waits until one comes
        back; until all do, where they had another length. One caller at a time."""
        while self._out and not self._available(length):
            self._returned.clear()
            await self._returned.wait()
        if length != self._length:
            self.close()
            self._length = length
        self._out += 1
        if self._free:
            return self._free.pop()
        self._outgoing.take(length)
        return memoryview(mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))

    def give(self, buffer: memoryview) -> None:
        """Gives back what `take` gave. Nobody touches it any more."""
        self._out -= 1
        if self._outgoing.pressed and self._out + len(self._free):
            self._outgoing.release(self._length)
        else:
            self._free.append(buffer)
        self._returned.set()

    def close(self) -> None:
        """Gives back everything, also what is out. Nobody touches any of it any more. Idempotent."""
        self._outgoing.release(self._length * (self._out + len(self._free)))
        self._free.clear()
        self._out = 0

    def _available(self, length: int) -> bool:
        return length == self._length and bool(self._free or self._outgoing.left >= length)
