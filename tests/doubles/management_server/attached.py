"""One agent as the server knows it: its introduction, its queue, its answers."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import deque
from dataclasses import dataclass, field

from tests.doubles.management_server.packets import (
    FROM_SERVER,
    IN_SEQUENCE,
    REQUEST,
    STOP_ON_ERROR,
    Body,
    Elements,
    Link,
    Packet,
)

API = "com.cloud.agent.api."


class Disconnected(Exception):
    """The agent went away, or was sent away, while its answer was waited for."""


@dataclass
class _Waiting:
    packet: Packet
    answers: asyncio.Future[Elements]


@dataclass
class AttachedAgent:
    """What a test sees of a connection, and asks of it."""

    link: Link
    server_id: int
    host_id: int
    startup: Elements = field(default_factory=list)
    pings: list[float] = field(default_factory=list)  # monotonic seconds
    received: list[Packet] = field(default_factory=list)
    dropped: list[Packet] = field(default_factory=list)  # answers that nobody waited for, or of unknown classes
    up: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    reason: str = ""  # why it is gone
    known_answers: frozenset[str] | None = None  # None: every class that ends in Answer
    send_startup: bool = False  # in the next PingAnswer

    def __post_init__(self) -> None:
        start = random.getrandbits(15) << 48
        self._sequences = itertools.count(start)
        self._waiting: dict[int, _Waiting] = {}
        self._queue: deque[_Waiting] = deque()
        self._current: int | None = None  # the in-sequence request that is out
        self._writing = asyncio.Lock()

    @property
    def queued(self) -> int:
        """In-sequence requests that wait for another's answer."""
        return len(self._queue)

    @property
    def transferred(self) -> bool:
        return bool(self.startup[0][1].get("connectionTransferred"))

    async def ask(self, command: str, body: Body | None = None, *, in_sequence: bool = False) -> tuple[str, Body]:
        """Send one command; class and fields of its answer. Disconnected when there will be none."""
        ((answer, fields),) = await self.ask_all([(command, body or {})], in_sequence=in_sequence)
        return answer, fields

    async def ask_all(self, commands: Elements, *, in_sequence: bool = False, stop_on_error: bool = True) -> Elements:
        if self.gone.is_set():
            raise Disconnected(self.reason)
        flags = REQUEST | FROM_SERVER | (IN_SEQUENCE if in_sequence else 0) | (STOP_ON_ERROR if stop_on_error else 0)
        packet = Packet(next(self._sequences), flags, commands, self.server_id, self.host_id, self.host_id)
        waiting = _Waiting(packet, asyncio.get_running_loop().create_future())
        if in_sequence and self._current is not None:
            self._queue.append(waiting)
        else:
            await self._send_out(waiting)
        return await waiting.answers

    def forget(self, sequence: int) -> None:
        """What a timeout does: nobody waits any more, and the agent hears nothing of it."""
        self._waiting.pop(sequence, None)

    async def write(self, packet: Packet) -> None:
        async with self._writing:
            try:
                await self.link.send(packet)
            except OSError as error:
                raise Disconnected(str(error)) from error

    async def answered(self, packet: Packet) -> None:
        """An answer came: give it to whoever waits, and let the next in-sequence request go."""
        waiting = self._waiting.pop(packet.sequence, None)
        known = all(
            name in self.known_answers if self.known_answers is not None else name.endswith("Answer")
            for name, _ in packet.elements
        )
        if waiting is None or not known or len(packet.elements) != len(waiting.packet.elements):
            self.dropped.append(packet)
        elif not waiting.answers.done():
            waiting.answers.set_result(packet.elements)
        if packet.flags & IN_SEQUENCE and packet.sequence == self._current:
            self._current = None
            if self._queue:
                await self._send_out(self._queue.popleft())

    async def respond(self, request: Packet, elements: Elements) -> None:
        flags = request.flags & (IN_SEQUENCE | STOP_ON_ERROR)
        flags |= 0 if request.flags & FROM_SERVER else FROM_SERVER
        await self.write(
            Packet(
                request.sequence, flags, elements, self.server_id, self.host_id if self.up.is_set() else -1, request.via
            )
        )

    async def pinged(self, request: Packet) -> None:
        self.pings.append(time.monotonic())
        name, body = request.elements[0]
        answer: Body = {"result": True, "_command": {name: body}, "sendStartup": self.send_startup}
        self.send_startup = False
        await self.respond(request, [(f"{API}PingAnswer", answer)])

    def leave(self, reason: str) -> None:
        """The connection is over: everybody who waits is told at once."""
        if self.gone.is_set():
            return
        self.reason = reason
        self.gone.set()
        self.link.close()
        for waiting in [*self._waiting.values(), *self._queue]:
            if not waiting.answers.done():
                waiting.answers.set_exception(Disconnected(reason))
                waiting.answers.exception()  # whoever asked may have given up
        self._waiting.clear()
        self._queue.clear()

    async def _send_out(self, waiting: _Waiting) -> None:
        self._waiting[waiting.packet.sequence] = waiting
        if waiting.packet.flags & IN_SEQUENCE:
            self._current = waiting.packet.sequence
        await self.write(waiting.packet)
