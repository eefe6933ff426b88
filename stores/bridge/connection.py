"""One client of an NBD export: negotiation, then requests, several of them under way at once."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from stores.bridge.blocks import PAGE, BlockCache
from stores.bridge.negotiation import ALLOCATION_ID, Negotiation, Phase
from stores.bridge.readahead import Advice, ReadAhead
from stores.bridge.wire import (
    MAX_PAYLOAD,
    WRITES,
    Command,
    CommandFlag,
    Errno,
    Request,
    RequestParser,
    data_chunk,
    error_chunk,
    hole_chunk,
    none_chunk,
    simple_reply,
    status_chunk,
)
from stores.contract import Extent, MiB, RangeReader
from stores.errors import StoreError

_RECEIVE = 16 * 1024
_IN_FLIGHT = 64
"""Requests of one connection under way; the next one stays in the socket until one of them is answered."""
_STATUS_SPAN = 128 * MiB
"""Block status is told of at most so much at once: bounds the extents in memory, and costs a client little."""
_ZEROES = memoryview(bytes(PAGE))
_ALLOWED_FLAGS: dict[int, int] = {Command.READ: 0, Command.BLOCK_STATUS: int(CommandFlag.REQ_ONE)}


@dataclass(slots=True)
class Served:
    """What the connections of one export share."""

    reader: RangeReader
    size: int
    name: str
    cache: BlockCache
    ahead: ReadAhead
    pins: int
    """Pieces that one connection may hold in memory, so that a client which stops reading cannot starve the others."""
    negotiation_s: float
    failure: StoreError | None = field(default=None)


class Connection:
    """Serves one client on `sock`, a non-blocking stream socket that the caller closes."""

    def __init__(self, export: Served, sock: socket.socket) -> None:
        self._export = export
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._structured = False
        self._allocation = False
        self._sending = asyncio.Lock()
        self._pieces = asyncio.Semaphore(export.pins)

    async def run(self) -> None:
        """Returns when the client has left in good order. Else `ProtocolError`, `TimeoutError` or `OSError`, perhaps in
        a group: all of them mean no more than that this connection is over."""
        async with asyncio.timeout(self._export.negotiation_s):
            negotiation = await self._negotiate()
        if negotiation.phase is Phase.TRANSMISSION:
            self._structured = negotiation.structured
            self._allocation = negotiation.allocation
            await self._transmit(negotiation.rest)

    async def _receive(self) -> bytes:
        data = await self._loop.sock_recv(self._sock, _RECEIVE)
        if not data:
            raise ConnectionResetError("the client left without saying so")
        return data

    async def _negotiate(self) -> Negotiation:
        negotiation = Negotiation(self._export.name, self._export.size, preferred=PAGE)
        await self._loop.sock_sendall(self._sock, negotiation.greeting)
        while negotiation.phase not in (Phase.TRANSMISSION, Phase.CLOSED):
            await self._loop.sock_sendall(self._sock, negotiation.feed(await self._receive()))
        return negotiation

    async def _transmit(self, first: bytes) -> None:
        parser = RequestParser()
        # A simple reply cannot be taken back once its head is sent: such clients are served one request at a time.
        slots = asyncio.Semaphore(_IN_FLIGHT if self._structured else 1)
        data = first
        async with asyncio.TaskGroup() as requests:
            while True:
                for request in parser.feed(data):
                    if request.command == Command.DISC:
                        return
                    await slots.acquire()
                    task = requests.create_task(self._answer(request), name="nbd-request")
                    task.add_done_callback(lambda _: slots.release())
                data = await self._receive()

    # ------------------------------------------------------------------------------------------------ requests

    async def _answer(self, request: Request) -> None:
        error = self._objection(request)
        if error is not None:
            await self._refuse(request, *error)
        elif request.command == Command.BLOCK_STATUS:
            await self._block_status(request)
        elif request.length == 0:
            await self._send(none_chunk(request.cookie) if self._structured else simple_reply(request.cookie))
        else:
            await self._read(request)

    def _objection(self, request: Request) -> tuple[Errno, str] | None:
        """Why a request is not carried out."""
        if request.command in WRITES:
            return Errno.EPERM, "the export is read-only"
        allowed = _ALLOWED_FLAGS.get(request.command)
        if allowed is None:
            return Errno.EINVAL, "not a command that was offered"
        if request.flags & ~allowed:
            return Errno.EINVAL, "not a flag that was offered"
        if request.command == Command.BLOCK_STATUS and not self._allocation:
            return Errno.EINVAL, "base:allocation was not negotiated"
        if request.offset + request.length > self._export.size:
            return Errno.EINVAL, "beyond the end of the export"
        if request.command == Command.READ and request.length > MAX_PAYLOAD:
            return Errno.EINVAL, "longer than the largest block size"
        return None

    async def _refuse(self, request: Request, error: Errno, why: str) -> None:
        await self._send(
            error_chunk(request.cookie, error, why) if self._structured else simple_reply(request.cookie, error)
        )

    async def _block_status(self, request: Request) -> None:
        try:
            extents = await self._export.reader.extents(request.offset, min(request.length, _STATUS_SPAN))
        except StoreError as error:
            self._remember(error)
            await self._refuse(request, Errno.EIO, error.kind)
            return
        wanted = extents[:1] if request.flags & CommandFlag.REQ_ONE else extents
        if not wanted:
            await self._refuse(request, Errno.EINVAL, "an empty range has no status")
        else:
            await self._send(status_chunk(request.cookie, ALLOCATION_ID, wanted))

    async def _read(self, request: Request) -> None:
        end = request.offset + request.length
        advice = self._export.ahead.observe(request.offset, request.length)
        head = b"" if self._structured else simple_reply(request.cookie)  # due with the first bytes
        try:
            extents = await self._export.reader.extents(request.offset, max(end, advice.stop) - request.offset)
            self._begin(extents, end, advice)
            for extent in _clipped(extents, request.offset, end):
                offset, stop = extent.offset, extent.offset + extent.length
                if extent.zero and self._structured:
                    await self._send(hole_chunk(request.cookie, offset, extent.length, done=stop == end))
                    continue
                while offset < stop:
                    async with self._piece(extent.zero, offset, stop, advice) as data:
                        after = offset + len(data)
                        if self._structured:
                            head = data_chunk(request.cookie, offset, len(data), done=after == end)
                        await self._send(head, data)
                        head, offset = b"", after
        except StoreError as error:
            self._remember(error)
            if not self._structured and not head:
                raise ConnectionAbortedError("a simple reply cannot be taken back") from error
            await self._refuse(request, Errno.EIO, error.kind)

    def _begin(self, extents: Sequence[Extent], end: int, advice: Advice) -> None:
        """Start what is going to be needed, so that the pieces of a request do not wait for each other."""
        cache = self._export.cache
        for extent in extents:
            if not extent.zero:
                stop = extent.offset + extent.length
                cache.begin(extent.offset, min(stop, end), sequential=advice.sequential)
                cache.begin(max(extent.offset, advice.start), min(stop, advice.stop), sequential=True)

    @asynccontextmanager
    async def _piece(self, zero: bool, offset: int, stop: int, advice: Advice) -> AsyncIterator[memoryview]:
        """Some bytes of an extent, from `offset`."""
        if zero:
            yield _ZEROES[: stop - offset]
            return
        async with self._pieces, self._export.cache.pinned(offset, stop - offset, sequential=advice.sequential) as data:
            yield data

    def _remember(self, error: StoreError) -> None:
        if self._export.failure is None:
            self._export.failure = error

    async def _send(self, head: bytes, data: memoryview | None = None) -> None:
        """All of both, and nothing of another reply in between."""
        async with self._sending:
            parts = [memoryview(head)] if data is None else [memoryview(head), data]
            try:
                sent = self._sock.sendmsg(parts)  # most often all that fits goes with one call
            except BlockingIOError:
                sent = 0
            for part in parts:
                if sent < len(part):
                    await self._loop.sock_sendall(self._sock, part[sent:])
                sent = max(0, sent - len(part))


def _clipped(extents: Sequence[Extent], start: int, stop: int) -> Iterator[Extent]:
    """The parts of `extents` between `start` and `stop`."""
    for extent in extents:
        first, last = max(extent.offset, start), min(extent.offset + extent.length, stop)
        if first < last:
            yield Extent(first, last - first, extent.zero)
