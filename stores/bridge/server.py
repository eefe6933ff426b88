"""The export's socket and its clients."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import structlog

from stores.bridge.blocks import RUN, SPAN, BlockCache, Memory
from stores.bridge.connection import Connection, Served
from stores.bridge.readahead import ReadAhead
from stores.bridge.wire import ProtocolError
from stores.contract import KiB, MiB, NbdExport, RangeReader
from stores.errors import AlreadyExists, InvalidReference, PolicyRefused, StoreUnsupported
from stores.os_errors import translated

_log = structlog.get_logger(__name__)

_LONGEST_PATH = 107  # unix(7): sun_path without the final NUL
PROCESS_MEMORY = Memory(32 * MiB)
"""What the exports of one process hold at most, together: enough for one at full speed, and for eight at once."""
_MAX_CLIENTS = 16  # more of them wait in the listen queue
_SEND_BUFFER = 512 * KiB  # as far as net.core.wmem_max allows: a third less CPU than with the default of 208 KiB


@asynccontextmanager
async def serve(
    reader: RangeReader,
    socket_path: Path,
    *,
    export: str = "",
    memory: Memory = PROCESS_MEMORY,
    negotiation_s: float = 10.0,
) -> AsyncIterator[NbdExport]:
    """Serve the object read-only over NBD on a unix socket, until the context ends.

    The socket has mode 0600, in a directory of mode 0700, which is created if missing. It is there, and answers, when the
    context begins; when it ends, also by cancellation, the socket, every connection and every task are gone. `memory`
    bounds the bytes of the object that are held at once, for however many clients; all exports of the process share
    it unless they are given another. A client has `negotiation_s` seconds to come to its first request. A read that
    fails is answered EIO, and `NbdExport.failure` then tells why.

    Raises `StoreUnsupported` for an object of unknown size, `InvalidReference` for a path too long for a socket,
    `PolicyRefused` where others than the agent's user may enter the directory, `AlreadyExists` where the path is taken.
    """
    with memory.used():
        served = _served(reader, export, memory, negotiation_s)
        with _listening(socket_path) as listener:
            server = asyncio.create_task(_accept(listener, served), name="nbd-export")
            try:
                yield NbdExport(socket_path, export, reader.info, lambda: served.failure)
            finally:
                await _stop(server)


def _served(reader: RangeReader, export: str, memory: Memory, negotiation_s: float) -> Served:
    size = reader.info.size
    if size is None:
        raise StoreUnsupported(
            f"{reader.info.ref} cannot be exported: the store does not tell its size", ref=reader.info.ref
        )
    window = memory.share // 2
    return Served(
        reader=reader,
        size=size,
        name=export,
        cache=BlockCache(reader, size, memory),
        ahead=ReadAhead(size, window=window, span=max(RUN, min(SPAN, window // 2))),
        pins=window // RUN,
        negotiation_s=negotiation_s,
    )


@contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    listener = _listen(path)
    try:
        yield listener
    finally:
        listener.close()
        path.unlink(missing_ok=True)


def make_room(path: Path) -> None:
    """Sees to it that a socket can be made at `path`, in a directory of mode 0700, which is created if missing. Blocking.

    `InvalidReference` for a path too long for a socket, `PolicyRefused` where others than the agent's user may enter the
    directory.
    """
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise InvalidReference(
            f"{path} is too long for a socket: at most {_LONGEST_PATH} bytes, use a shorter runtime directory"
        )
    with translated(str(path)):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory = path.parent.stat()
    if directory.st_uid != os.geteuid() or stat.S_IMODE(directory.st_mode) & 0o077:
        raise PolicyRefused(
            f"{path.parent} must belong to the agent's user with mode 0700, else others could read through its sockets"
        )


def _listen(path: Path) -> socket.socket:
    make_room(path)
    with translated(str(path)):
        return _bound(path)


def _bound(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        try:
            listener.bind(os.fspath(path))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise AlreadyExists(f"{path} is taken: another export is served there", path=str(path)) from error
        path.chmod(0o600)
        listener.listen()
    except BaseException:
        listener.close()
        raise
    return listener


async def _accept(listener: socket.socket, served: Served) -> None:
    loop = asyncio.get_running_loop()
    free = asyncio.Semaphore(_MAX_CLIENTS)
    async with served.cache, asyncio.TaskGroup() as clients:
        while True:
            await free.acquire()
            sock, _ = await loop.sock_accept(listener)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            client = clients.create_task(_client(served, sock), name="nbd-client")
            client.add_done_callback(lambda _: free.release())


async def _client(served: Served, sock: socket.socket) -> None:
    with sock:
        try:
            await Connection(served, sock).run()
        except* ProtocolError as errors:
            _log.warning("nbd client dropped", export=served.name, why=str(errors.exceptions[0]))
        except* OSError as errors:  # TimeoutError is one of them
            _log.debug("nbd client gone", export=served.name, why=repr(errors.exceptions[0]))


async def _stop(server: asyncio.Task[None]) -> None:
    """Cancel, and wait for the end, even if we are cancelled meanwhile. Raises what the server failed with."""
    server.cancel()
    cancelled: asyncio.CancelledError | None = None
    while not server.done():
        try:
            await asyncio.wait([server])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    if not server.cancelled():
        server.result()
