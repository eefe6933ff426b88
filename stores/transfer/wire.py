"""HTTP/1.1 on a blocking socket, as far as GETs and PUTs of large objects need it (RFC 9110, RFC 9112).

Everything here that takes time runs in a thread and ends at once, with `ConnectionFailed`, when `Connection.abort` is called.
Bodies are received straight into the caller's memory.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from stores.contract import KiB

HEAD_LIMIT = 32 * KiB
"""Longest status line plus headers that is read; servers in use stay under 8 KiB."""


class ConnectionFailed(Exception):
    """The connection broke, timed out, or carried something that is not HTTP/1.1: of no further use."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Status line and headers. Names in lower case; of repeated headers the last one."""

    status: int
    reason: str
    headers: Mapping[str, str]
    keep_alive: bool

    @property
    def length(self) -> int | None:
        """Content-Length, where there is a valid one."""
        text = self.headers.get("content-length", "")
        return int(text) if text.isascii() and text.isdigit() else None

    @property
    def chunked(self) -> bool:
        return self.headers.get("transfer-encoding", "").lower().rpartition(",")[2].strip() == "chunked"


def parse_head(head: bytes) -> Answer:
    """Everything before the empty line. `ConnectionFailed` when it is not an HTTP/1 answer."""
    first, *lines = head.decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    code, _, reason = rest.partition(" ")
    if version not in ("HTTP/1.1", "HTTP/1.0") or len(code) != 3 or not (code.isascii() and code.isdigit()):
        raise ConnectionFailed("the answer is not HTTP/1.1")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise ConnectionFailed("the answer has a malformed header")
        headers[name.lower()] = value.strip()
    tokens = {token.strip() for token in headers.get("connection", "").lower().split(",")}
    keep_alive = "close" not in tokens and (version == "HTTP/1.1" or "keep-alive" in tokens)
    return Answer(int(code), reason, headers, keep_alive)


def limit_silence(sock: socket.socket, limit_s: float) -> None:
    """Makes `sock` blocking, and each call on it fail with `BlockingIOError` when nothing moved for so long.

    A Python timeout makes the descriptor non-blocking, and MSG_WAITALL then returns every few kilobytes. With the kernel's own
    timeouts one system call fills a whole buffer.
    """
    sock.settimeout(None)
    limit = struct.pack("ll", int(limit_s), int(limit_s % 1 * 1_000_000))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


class Connection:
    """One connected socket, plain or TLS. One thread at a time uses it; `abort` may come from any."""

    def __init__(
        self,
        raw: socket.socket,
        *,
        tls: ssl.SSLContext | None,
        host: str,
        read_timeout_s: float,
        ragged_end: bool = False,
    ) -> None:
        """Takes over `raw`, connected. The TLS handshake happens in `secure`, or on the first `exchange`, in its thread.

        `ragged_end`: that the other side ends the connection without TLS's own word for it is no trouble. For those who
        learn by other means whether all has come."""
        self.reused = False
        self.trouble: str | None = None
        """Why the last `receive` ended early; None after an orderly end of the connection."""
        self.stalled = False
        """Whether the last failure was silence."""
        self._aborted = False
        self._head = memoryview(bytearray(HEAD_LIMIT))
        self._rest = self._head[:0]
        self.read_timeout_s = read_timeout_s
        self._handshake = tls is not None
        self._sock: socket.socket
        if raw.family != socket.AF_UNIX:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            raw.settimeout(read_timeout_s)
            self._sock = tls.wrap_socket(
                raw, server_hostname=host, do_handshake_on_connect=False, suppress_ragged_eofs=ragged_end
            )
            self._flags = 0
        else:
            limit_silence(raw, read_timeout_s)
            self._sock = raw
            self._flags = socket.MSG_WAITALL

    @property
    def encrypted(self) -> bool:
        """Whether bytes have to pass through this process to be sent."""
        return isinstance(self._sock, ssl.SSLSocket)

    def wait_for(self, read_timeout_s: float) -> None:
        """From now on, silence may last so long."""
        self.read_timeout_s = read_timeout_s
        if self.encrypted:
            self._sock.settimeout(read_timeout_s)
        else:
            limit_silence(self._sock, read_timeout_s)

    def secure(self) -> bytes | None:
        """Makes the TLS handshake: the certificate that the server showed (DER). None on a plain connection. `ssl.SSLError`
        where there is no trust, `OSError` where there is no connection."""
        if not isinstance(self._sock, ssl.SSLSocket):
            return None
        if self._handshake:
            self._sock.do_handshake()
            self._handshake = False
        return self._sock.getpeercert(binary_form=True)

    def exchange(self, request: bytes) -> Answer:
        """Sends `request` and reads the answer up to its body. Interim answers (1xx) are passed over."""
        self.begin(request)
        return self.answer()

    def begin(self, request: bytes) -> None:
        """Sends `request`, whose body may follow."""
        try:
            if self._handshake:
                self.secure()
            self._sock.sendall(request)
        except ssl.SSLCertVerificationError:
            raise
        except OSError as error:
            raise self._failed(error) from error

    def answer(self) -> Answer:
        """The next answer up to its body; interim ones are passed over."""
        try:
            while True:
                answer = parse_head(self._receive_head())
                if answer.status >= 200:
                    return answer
        except OSError as error:
            raise self._failed(error) from error

    def send(self, view: memoryview) -> None:
        """Sends all of `view`."""
        try:
            self._sock.sendall(view)
        except OSError as error:
            raise self._failed(error, "took") from error

    def send_file(self, descriptor: int, offset: int, count: int) -> int:
        """Sends up to `count` bytes of a file straight from the page cache, and returns how many; 0 where the file ends. Not on
        an encrypted connection."""
        try:
            return os.sendfile(self._sock.fileno(), descriptor, offset, count)
        except OSError as error:
            raise self._failed(error, "took") from error

    def answered(self) -> bool:
        """Whether something has arrived that is to be read. Does not wait."""
        if self._rest:
            return True
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        if not poll.poll(0):
            return False
        if not self.encrypted:
            return True
        # What has arrived may be TLS's own, such as session tickets: only reading tells.
        self._sock.settimeout(0)
        try:
            count = self._sock.recv_into(self._head)
        except ssl.SSLWantReadError:
            return False
        except OSError as error:
            raise self._failed(error) from error
        finally:
            self._sock.settimeout(self.read_timeout_s)
        self._rest = self._head[:count]
        return True

    def receive(self, view: memoryview) -> int:
        """Fills `view` and returns its length, or less where the connection ended before (`trouble`)."""
        filled = min(len(self._rest), len(view))
        view[:filled] = self._rest[:filled]
        self._rest = self._rest[filled:]
        try:
            while filled < len(view):
                count = self._sock.recv_into(view[filled:], 0, self._flags)
                if count == 0:
                    break
                filled += count
        except OSError as error:
            self.trouble = str(self._failed(error))
        return filled

    def receive_some(self, limit: int) -> bytes:
        """Up to `limit` bytes, at least one; empty at the end of the connection."""
        if not self._rest:
            try:
                count = self._sock.recv_into(self._head)
            except OSError as error:
                raise self._failed(error) from error
            self._rest = self._head[:count]
        some = bytes(self._rest[:limit])
        self._rest = self._rest[len(some) :]
        return some

    def read_line(self) -> bytes:
        """One line of chunked framing, without its CR LF."""
        line = bytearray()
        while not line.endswith(b"\r\n"):
            byte = self.receive_some(1)
            if not byte or len(line) > 4096:
                raise ConnectionFailed("the connection ended inside chunked framing")
            line += byte
        return bytes(line[:-2])

    def drop_body(self, answer: Answer) -> bool:
        """Reads away a short body (an error page), so that the connection can be used again. False if it cannot be."""
        length = answer.length
        if not answer.keep_alive or answer.chunked or length is None or length > HEAD_LIMIT:
            return False
        return self.receive(memoryview(bytearray(length))) == length

    def abort(self) -> None:
        """Ends whatever a thread does on this connection. From any thread, any number of times."""
        self._aborted = True
        try:
            # Of the plain class: SSLSocket's own would pull the TLS state away from under the thread that uses it.
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)
        except OSError:
            return  # not connected any more, which is what was wanted

    def idle(self) -> bool:
        """Whether it may carry another request: still open, nothing unexpected waiting to be read."""
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        return not self._aborted and not self._rest and not poll.poll(0)

    def close(self) -> None:
        """Idempotent. What an aborted one has not sent yet is dropped, and the other side told so (RST): the kernel would go on
        sending it, to a slow server for minutes, and that might even find it whole."""
        if self._aborted and self._sock.fileno() >= 0:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()

    def _receive_head(self) -> bytes:
        kept = len(self._rest)
        self._head[:kept] = bytes(self._rest)
        filled = kept
        while True:
            end = bytes(self._head[:filled]).find(b"\r\n\r\n")
            if end >= 0:
                self._rest = self._head[end + 4 : filled]
                return bytes(self._head[:end])
            if filled == HEAD_LIMIT:
                raise ConnectionFailed(f"the answer's headers are longer than {HEAD_LIMIT} bytes")
            count = self._sock.recv_into(self._head[filled:])
            if count == 0:
                raise ConnectionFailed("the server closed the connection")
            filled += count

    def _failed(self, error: OSError, did: str = "sent") -> ConnectionFailed:
        # Expired kernel timeouts show as EAGAIN, Python's as TimeoutError.
        self.stalled = isinstance(error, BlockingIOError | TimeoutError)
        if self.stalled:
            return ConnectionFailed(f"the server {did} nothing for {self.read_timeout_s:g} s")
        return ConnectionFailed(str(error))


class Body:
    """The body of one answer to a GET of a whole object, in order, however it is framed: chunks, a length, or the end of
    the connection."""

    def __init__(self, connection: Connection, answer: Answer) -> None:
        self._connection = connection
        self._chunked = answer.chunked
        self._left = 0 if answer.chunked else answer.length
        self.complete = self._left == 0 and not self._chunked
        self._first = True

    def receive(self, view: memoryview) -> int:
        """Fills `view`; less only at the end of the body. `ConnectionFailed` when the connection ended before it."""
        filled = 0
        while filled < len(view) and not self.complete:
            if self._chunked and not self._left:
                self._next_chunk()
                continue
            wanted = len(view) - filled if self._left is None else min(self._left, len(view) - filled)
            count = self._connection.receive(view[filled : filled + wanted])
            filled += count
            if count < wanted and (self._left is not None or self._connection.trouble):
                raise ConnectionFailed(self._connection.trouble or "the server closed the connection early")
            if self._left is None:
                self.complete = count < wanted
            else:
                self._left -= count
                self.complete = not self._chunked and self._left == 0
        return filled

    def _next_chunk(self) -> None:
        """RFC 9112 section 7.1: the size in hex, extensions ignored; after the last chunk trailers, also ignored."""
        if not self._first and self._connection.read_line():
            raise ConnectionFailed("chunked framing is broken")
        self._first = False
        size = self._connection.read_line().partition(b";")[0].strip()
        try:
            self._left = int(size, 16)
        except ValueError:
            raise ConnectionFailed("chunked framing is broken") from None
        if self._left == 0:
            while self._connection.read_line():
                pass
            self.complete = True
