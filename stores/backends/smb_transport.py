"""Direct TCP of SMB ([MS-SMB2] 2.1): packets behind a length of four bytes, on a socket that can always be given up.

It takes the place of smbprotocol's own transport, which waits by select(2), so that it fails once a process has 1024
descriptors, and sends without a time limit, so that nobody could ever stop a call to a server that takes nothing more.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from stores.transfer.wire import limit_silence

PACKET_LIMIT = 0xFFFFFF


class Packed(Protocol):
    """An encrypted message of smbprotocol's."""

    def pack(self) -> bytes: ...


class Transport:
    """Sends come from many threads, `recv` from the connection's own; `close` from any."""

    def __init__(self, host: str, port: int, *, connect_timeout_s: float, silence_s: float) -> None:
        """`silence_s`: how long a packet that has begun may stand still, in either direction."""
        self._address = (host, port)
        self._connect_timeout_s = connect_timeout_s
        self._silence_s = silence_s
        self._socket: socket.socket | None = None
        self._sending = threading.Lock()
        self._closed = False
        self.connected = False
        self.take: Callable[[bytes], bool] = lambda packet: False
        """Told every packet before `recv` gives it: True for one that it shall not give. In the thread that receives."""

    def connect(self) -> None:
        """`OSError` where there is no connection."""
        self._socket = socket.create_connection(self._address, self._connect_timeout_s)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        limit_silence(self._socket, self._silence_s)
        self.connected = not self._closed

    def send(self, message: bytes | Packed) -> None:
        self.send_parts(message if isinstance(message, bytes) else message.pack())

    def send_parts(self, *parts: bytes | memoryview) -> None:
        """One packet. `parts` may be used again when this returns."""
        length = sum(map(len, parts))
        if length > PACKET_LIMIT:
            raise ValueError(f"a packet of {length} bytes is longer than SMB's limit of {PACKET_LIMIT}")
        with self._sending:
            if self._socket is None or not self.connected:
                raise ConnectionResetError("the connection was closed")
            try:
                self._socket.sendall(b"".join([struct.pack(">I", length), *parts[:-1]]), socket.MSG_MORE)
                self._socket.sendall(parts[-1])
            except OSError:
                self.close()  # a part of a packet may have gone out
                raise

    def recv(self, timeout: float) -> bytes:
        """The next packet; empty where there will be none. `TimeoutError` when none begins for `timeout` seconds."""
        packet = self._packet(timeout)
        while packet and self.take(packet):
            packet = self._packet(timeout)
        return packet

    def _packet(self, timeout: float) -> bytes:
        if self._socket is None or not self.connected:
            return b""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if not poll.poll(timeout * 1000):
            raise TimeoutError
        head = self._receive(4)
        return self._receive(int.from_bytes(head)) if head else b""

    def close(self) -> None:
        """Wakes whoever sends or receives. The descriptor itself is given back by `release`. Idempotent."""
        self._closed = True
        self.connected = False
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        """After `close`, when no thread uses the socket any more. Idempotent."""
        if self._socket is not None:
            self._socket.close()

    def _receive(self, length: int) -> bytes:
        """`length` bytes, or none at all where the connection ended."""
        assert self._socket is not None
        buffer = bytearray(length)
        view, at = memoryview(buffer), 0
        while at < length:
            try:
                count = self._socket.recv_into(view[at:], 0, socket.MSG_WAITALL)
            except OSError:
                count = 0
            if not count:
                self.close()
                return b""
            at += count
        return bytes(buffer)
