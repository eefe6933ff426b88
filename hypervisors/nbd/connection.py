"""One connection to an NBD server, blocking: on a unix socket, or by TLS.

Everything here that takes time runs in a thread and ends at once, with `Unavailable`, when `Connection.abort` is called. Data
are received straight into the caller's memory. After any error the connection is of no further use.
"""

from __future__ import annotations

import errno
import itertools
import socket
import ssl
from collections.abc import Container, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple

from hypervisors.nbd.negotiation import Export, Negotiation
from hypervisors.nbd.replies import ChunkHead, ReadReply, Run, chunk_head, refusal, runs
from hypervisors.nbd.servers import Tls
from stores.bridge.wire import CHUNK, HOLE, OFFSET, Chunk, Command, ProtocolError, request
from stores.contract import KiB, MiB
from stores.errors import StoreError, TlsFailed, Unavailable
from stores.secret import Secret
from stores.transfer.wire import limit_silence

REQUEST = 512 * KiB
"""Bytes of one read: the server reads the next while it sends the last, and every server takes as much. With 1 MiB, qemu-nbd
gives its buffers back to the kernel after each read, and takes half as much time again."""

IN_FLIGHT = 16
"""Reads under way on one connection: what qemu works on at once (MAX_NBD_REQUESTS)."""

_ZEROES = memoryview(bytes(1 * MiB))


class _Read(NamedTuple):
    """A read that was asked for, and where its data go."""

    reply: ReadReply
    view: memoryview


class Connection:
    """One thread at a time uses it; `abort` may come from any."""

    def __init__(self, sock: socket.socket, what: str, stall_s: float, tls: Tls | None) -> None:
        """Takes over `sock`, connected. `what` names the export in errors. `stall_s`: how long the server may be silent.
        `tls`: the connection is secured by it before anything is asked for."""
        self._sock = sock
        self._tls = tls
        self._aborted = False
        self._what = what
        self._stall_s = stall_s
        self._cookie = 0
        self._context_id: int | None = None
        self._head = bytearray(CHUNK.size)
        self._limit = REQUEST
        limit_silence(sock, stall_s)

    def negotiate(self, name: str | Secret, context: str | None) -> tuple[Export, bool]:
        """The export of that name, and whether it has `context`. Raises what `Negotiation.feed` does, and `StoreError` for a
        server that does not keep to the protocol, `TlsFailed` for one that does not prove who it is."""
        negotiation = Negotiation(name, context, tls=self._tls is not None)
        with self._translated():
            while negotiation.export is None:
                data = self._sock.recv(4 * KiB)
                if not data:
                    raise _closed()
                self._sock.sendall(negotiation.feed(data))
                if negotiation.handshake_due:
                    self._secure()
                    self._sock.sendall(negotiation.secured())
        self._context_id = negotiation.context_id
        self._limit = min(REQUEST, negotiation.export.max_request)
        return negotiation.export, negotiation.context_id is not None

    def read(self, offset: int, view: memoryview) -> None:
        """Fills `view` with what is at `offset`, by several reads under way at once."""
        with self._translated():
            waiting = self._reads(offset, view)
            under_way: dict[int, _Read] = {}
            while True:
                asked = bytearray()
                for read in itertools.islice(waiting, IN_FLIGHT - len(under_way)):
                    self._cookie += 1
                    under_way[self._cookie] = read
                    asked += request(Command.READ, self._cookie, read.reply.offset, read.reply.length)
                if asked:
                    self._sock.sendall(asked)
                if not under_way:
                    return
                self._receive_part(under_way)

    def status(self, offset: int, length: int) -> list[Run]:
        """The context's states of at most so many bytes, at least of the first of them."""
        with self._translated():
            self._cookie += 1
            self._sock.sendall(request(Command.BLOCK_STATUS, self._cookie, offset, length))
            told: list[Run] = []
            done = False
            while not done:
                head = self._receive_head({self._cookie})
                if head.error:
                    raise refusal(self._receive(head.length), f"asking {self._what} for its extents")
                if head.kind == Chunk.BLOCK_STATUS and not told:
                    payload = self._receive(head.length)
                    told = runs(payload, context_id=self._context_id, offset=offset, length=length)
                elif head.kind != Chunk.NONE:
                    raise ProtocolError(f"a chunk of type {head.kind} in reply to block status")
                done = head.done
            if not told:
                raise ProtocolError("block status without an extent")
            return told

    def abort(self) -> None:
        """Ends whatever a thread does on this connection. From any thread, any number of times."""
        self._aborted = True
        with suppress(OSError):  # not connected any more, which is what was wanted
            # Not SSLSocket's own, which would take the session away from the thread that is reading.
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def leave(self) -> None:
        """Takes leave of the server, where nothing is under way, and closes."""
        with suppress(OSError):
            self._sock.setblocking(False)
            self._sock.send(request(Command.DISC, 0))
        self.close()

    def close(self) -> None:
        self._sock.close()

    def _secure(self) -> None:
        assert self._tls is not None
        # The kernel's timeouts do not end a read of TLS, and it has no MSG_WAITALL: Python's do, and `_fill` goes on.
        self._sock.settimeout(self._stall_s)
        try:
            name = self._tls.name
            self._sock = secured = self._tls.context.wrap_socket(
                self._sock, server_hostname=name, do_handshake_on_connect=False
            )
            if self._aborted:  # while it was neither socket
                raise _closed()
            secured.do_handshake()
        except ssl.SSLError as error:
            raise TlsFailed(f"{self._what}: no trusted TLS session: {error}") from error

    # ------------------------------------------------------------------------------------------------- receiving

    def _reads(self, offset: int, view: memoryview) -> Iterator[_Read]:
        for start in range(0, len(view), self._limit):
            part = view[start : start + self._limit]
            yield _Read(ReadReply(offset + start, len(part)), part)

    def _receive_part(self, under_way: dict[int, _Read]) -> None:
        """One chunk."""
        head = self._receive_head(under_way)
        reply, view = under_way[head.cookie]
        if head.error:
            where = f"{reply.length} bytes at {reply.offset}"
            raise refusal(self._receive(head.length), f"reading {where} of {self._what}")
        if head.kind == Chunk.OFFSET_DATA:
            (at,) = OFFSET.unpack(self._receive(OFFSET.size))
            start, end = reply.place(at, head.length - OFFSET.size)
            self._fill(view[start:end])
        elif head.kind == Chunk.OFFSET_HOLE:
            start, end = reply.place(*HOLE.unpack(self._receive(head.length)))
            _clear(view[start:end])
        elif head.kind != Chunk.NONE:
            raise ProtocolError(f"a chunk of type {head.kind} in reply to a read")
        if head.done:
            reply.finish()
            del under_way[head.cookie]

    def _receive_head(self, expected: Container[int]) -> ChunkHead:
        self._fill(memoryview(self._head))
        head = chunk_head(self._head)
        if head.cookie not in expected:
            raise ProtocolError(f"a reply with cookie {head.cookie:#x}, which no request has")
        return head

    def _receive(self, count: int) -> bytearray:
        data = bytearray(count)
        self._fill(memoryview(data))
        return data

    def _fill(self, view: memoryview) -> None:
        filled = 0
        while filled < len(view):
            if self._tls is None:
                count = self._sock.recv_into(view[filled:], 0, socket.MSG_WAITALL)
            else:
                count = self._sock.recv_into(view[filled:])
            if count == 0:
                raise _closed()
            filled += count

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except ProtocolError as error:
            raise StoreError(f"{self._what}: the server answers against the NBD protocol: {error}") from error
        except (BlockingIOError, TimeoutError) as error:  # how the kernel's timeouts show, and Python's
            raise Unavailable(f"{self._what}: the server sent nothing for {self._stall_s:g} s") from error
        except OSError as error:
            raise Unavailable(f"{self._what}: the connection broke: {error.strerror or error}") from error


def _closed() -> OSError:
    return ConnectionResetError(errno.ECONNRESET, "the server closed it")


def _clear(view: memoryview) -> None:
    for start in range(0, len(view), len(_ZEROES)):
        part = view[start : start + len(_ZEROES)]
        part[:] = _ZEROES[: len(part)]
