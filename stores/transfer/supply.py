"""The buffers of one transfer, handed out among its threads."""

from __future__ import annotations

import queue
import threading


class Stopped(Exception):
    """Another part of the same transfer failed; that failure is what its caller sees."""


class Supply:
    """Buffers that go from thread to thread. Whoever wants one for the lowest piece gets the next.

    `ordered`: pieces come back only in order of their numbers, as a digest takes them. A buffer is then always kept for the
    lowest one, which all others wait for, so that they cannot keep it from arriving.
    """

    def __init__(self, *, ordered: bool) -> None:
        self._ordered = ordered
        self._next = 0  # all pieces before it have come back
        self._free: list[memoryview] = []
        self._waiting: dict[int, queue.SimpleQueue[memoryview | None]] = {}
        self._served: set[int] = set()
        self._stopped = False
        self._lock = threading.Lock()

    def add(self, buffer: memoryview) -> None:
        """One more to hand out."""
        with self._lock:
            self._free.append(buffer)
            self._hand_out()

    def take(self, number: int) -> memoryview:
        """A buffer for the piece of that number. Blocks until there is one; `Stopped` when there never will be."""
        turn: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
        with self._lock:
            if self._stopped:
                raise Stopped
            self._waiting[number] = turn
            self._hand_out()
        buffer = turn.get()
        if buffer is None:
            raise Stopped
        return buffer

    def give(self, number: int, buffer: memoryview | None, *, pressed: bool) -> bool:
        """Piece `number` is done, and with it its buffer, where it had one. False when the buffer is not kept: it is not, when
        others outside are in need of it (`pressed`) and the transfer can go on without."""
        with self._lock:
            self._served.discard(number)
            self._next = number + 1
            kept = buffer is None or not pressed or not self._lowest_has_one()
            if buffer is not None and kept:
                self._free.append(buffer)
            self._hand_out()
            return kept

    def stop(self) -> None:
        """Ends all waiting."""
        with self._lock:
            self._stopped = True
            while self._waiting:
                self._waiting.popitem()[1].put(None)

    def _hand_out(self) -> None:
        """Wakes exactly those who get a buffer: with many transfers at once, threads that wake in vain would keep the event
        loop from its turn."""
        while self._waiting and self._free:
            number = min(self._waiting)
            if number != self._next and not self._lowest_has_one(besides=1):
                return
            self._served.add(number)
            self._waiting.pop(number).put(self._free.pop())

    def _lowest_has_one(self, *, besides: int = 0) -> bool:
        """Whether the piece that all others wait for has a buffer, or will find a free one, `besides` so many."""
        return not self._ordered or self._next in self._served or len(self._free) > besides
