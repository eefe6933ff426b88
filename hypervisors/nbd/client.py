"""An NBD export as a `RangeReader`: any range, by several connections, with what the server knows about extents."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from functools import partial
from pathlib import Path

from hypervisors.nbd.connection import Connection
from hypervisors.nbd.connections import Connections
from hypervisors.nbd.replies import Run, joined
from hypervisors.nbd.servers import Server, UnixServer
from stores.bridge.wire import ALLOCATION, STATE_ZERO
from stores.contract import Ahead, BlockingCalls, Extent, GiB, MiB, ObjectInfo, RangeReader
from stores.errors import IntegrityError, NotFound
from stores.secret import Secret
from stores.streams import read_one
from stores.transfer.engine import TransferEngine

DIRTY_BITMAP = "qemu:dirty-bitmap:"
"""What qemu calls a context that tells which clusters changed, before the bitmap's name."""

_DIRTY = 1
_STATUS = 4 * GiB - 1 * MiB
"""Bytes that one block status is about: the most that its 32 bits can say, on a MiB border. An empty disk of 8 TiB takes 2049
of them."""

_RUNS = 4096
"""Runs that are asked for in one go, without coming back to the event loop: a large disk of which there is little to say
takes thousands of requests, and each is answered faster than threads change."""


class NbdDisk(RangeReader):
    """One export, until the context of `connect` ends. Its content is that of the disk: no headers, no backing files."""

    def __init__(
        self, info: ObjectInfo, size: int, connections: Connections, contexts: frozenset[str], threads: BlockingCalls
    ) -> None:
        """For `connect`."""
        self.info = info
        self.size = size
        self.parallel = connections.parallel
        self._connections = connections
        self._contexts = contexts
        self._threads = threads

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        """As promised by `RangeReader`. `IntegrityError` beyond the end, `Unavailable` when the server dies or is silent,
        `DeviceFault` and the like for what it cannot read, `StoreError` when it does not keep to the protocol. There are no
        further attempts: a server on this host that fails once is not there any more."""
        await read_one(self, offset, buffer, self._threads)

    async def read_each(
        self,
        take: Callable[[], tuple[int, memoryview] | None],
        put: Callable[[int, memoryview], None],
        threads: BlockingCalls,
        *,
        ahead: Ahead = lambda: (),
    ) -> None:
        # `ahead` is of no use: a request costs next to nothing, and replies come in any order, which only memory for all that
        # was asked for can take.
        async with self._connections.taken(None) as connection:
            await threads.run(partial(self._read_each, connection, take, put), abort=connection.abort)

    def _read_each(
        self,
        connection: Connection,
        take: Callable[[], tuple[int, memoryview] | None],
        put: Callable[[int, memoryview], None],
    ) -> None:
        while (wanted := take()) is not None:
            self._check(wanted[0], len(wanted[1]))
            connection.read(*wanted)
            put(*wanted)

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        """Data and zeroes, in order, without gaps, neighbours joined; everything is data where the server does not say. Zero
        is what `base:allocation` tells to read as zeroes, whether or not it takes room."""
        return [extent async for extent in self.each_extent(offset, length)]

    async def dirty(self, context: str, offset: int, length: int) -> list[tuple[int, int]]:
        """What changed since the bitmap of `context` (see `DIRTY_BITMAP`) was begun, as (offset, length), in order, neighbours
        joined. Whole clusters of the bitmap, so that more may be told than was written, but never less."""
        return [part async for part in self.each_dirty(context, offset, length)]

    async def each_extent(self, offset: int, length: int) -> AsyncGenerator[Extent, None]:
        """As `extents`, one after another: for ranges of which a list would be too long. Holds what is said about 4 GiB, or a
        few thousand extents where that is more."""
        self._check(offset, length)
        if ALLOCATION not in self._contexts:
            if length:
                yield Extent(offset, length, zero=False)
            return
        async with aclosing(self._each_run(ALLOCATION, STATE_ZERO, offset, length)) as runs:
            async for run in runs:
                yield Extent(run.offset, run.length, zero=bool(run.state))

    async def each_dirty(self, context: str, offset: int, length: int) -> AsyncGenerator[tuple[int, int], None]:
        """As `dirty`, in the manner of `each_extent`."""
        if context not in self._contexts:
            raise ValueError(f"{context} is none of the contexts that connect was told of")
        self._check(offset, length)
        async with aclosing(self._each_run(context, _DIRTY, offset, length)) as runs:
            async for run in runs:
                if run.state:
                    yield run.offset, run.length

    async def _each_run(self, context: str, mask: int, offset: int, length: int) -> AsyncGenerator[Run, None]:
        """Joined over the borders between replies."""
        end = offset + length
        last: Run | None = None
        while offset < end:
            ask = partial(_masked_status, mask=mask, offset=offset, end=end)
            async with self._connections.taken(context) as connection:
                told = await self._threads.run(partial(ask, connection), abort=connection.abort)
            offset = told[-1].end
            ready = list(joined([last, *told] if last else told))
            last = ready.pop()
            for run in ready:
                yield run
        if last is not None:
            yield last

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise IntegrityError(
                f"{self._connections.what} has {self.size} bytes, asked for {length} at {offset}",
                needed=offset + length,
                seen=self.size,
            )


def _masked_status(connection: Connection, *, mask: int, offset: int, end: int) -> list[Run]:
    """Runs from `offset` on, up to `end` unless there are `_RUNS` of them before; neighbours joined."""
    told: list[Run] = []
    while offset < end and len(told) < _RUNS:
        reply = connection.status(offset, min(_STATUS, end - offset))
        offset = reply[-1].end
        told[-1:] = joined([*told[-1:], *(Run(run.offset, run.length, run.state & mask) for run in reply)])
    return told


def connect(
    socket: Path,
    export: str,
    *,
    engine: TransferEngine,
    connections: int = 4,
    contexts: Sequence[str] = (ALLOCATION,),
    stall_s: float = 60.0,
) -> AbstractAsyncContextManager[NbdDisk]:
    """`connect_to` a server on a unix socket."""
    return connect_to(
        UnixServer(socket), export, engine=engine, connections=connections, contexts=contexts, stall_s=stall_s
    )


@asynccontextmanager
async def connect_to(
    server: Server,
    export: str | Secret,
    *,
    engine: TransferEngine,
    connections: int = 4,
    contexts: Sequence[str] = (ALLOCATION,),
    stall_s: float = 60.0,
) -> AsyncIterator[NbdDisk]:
    """The export of that name, until the context ends.

    At most `connections` read at once, and one more asks about each context; there is one connection in all where the server
    promises nothing about several (CAN_MULTI_CONN). `contexts`: what will be asked about; the server has to have them, except
    for `base:allocation`. It may be silent for `stall_s` seconds before it is given up.

    `NotFound` for an export, a context or a socket that is not there, `StoreUnsupported` for a server without structured
    replies, `AccessDenied`, `TlsFailed`, `Unavailable`, and `StoreError` for what is no NBD server.
    """
    owner = object()
    threads = engine.network.of(owner)
    made = Connections(server, export, most=connections, stall_s=stall_s, threads=threads)
    try:
        told = await made.probe()
        found = frozenset([context for context in contexts if await made.has(context)])
        for context in contexts:
            if context != ALLOCATION and context not in found:
                raise NotFound(
                    f"{made.what} has no {context}: the bitmap was never made, or is broken; take a full backup instead",
                    context=context,
                )
        info = ObjectInfo(str(export) or str(server), told.size)
        yield NbdDisk(info, told.size, made, found, threads)
    finally:
        made.close()
