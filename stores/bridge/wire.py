"""NBD as bytes: constants, requests in, replies out. No I/O.

Source of every number: the NBD protocol, https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md. All integers
are big-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from stores.contract import Extent, MiB

MAX_PAYLOAD = 32 * MiB
"""The largest read or write that a client may ask for: what the protocol lets clients assume anyway."""

_REQUEST_MAGIC = 0x25609513
_SIMPLE_REPLY_MAGIC = 0x67446698
_STRUCTURED_REPLY_MAGIC = 0x668E33EF

_REQUEST = struct.Struct(">IHHQQI")
_SIMPLE_REPLY = struct.Struct(">IIQ")
_CHUNK = struct.Struct(">IHHQI")
_OFFSET = struct.Struct(">Q")
_HOLE = struct.Struct(">QI")
_ERROR = struct.Struct(">IH")
_CONTEXT = struct.Struct(">I")
_DESCRIPTOR = struct.Struct(">II")

_LONGEST_MESSAGE = 4096  # strings on the wire, by the protocol


class ProtocolError(Exception):
    """The client said something after which its stream can no longer be followed: only closing is left."""


class Command(IntEnum):
    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7
    RESIZE = 8


WRITES = frozenset({Command.WRITE, Command.TRIM, Command.WRITE_ZEROES, Command.RESIZE})


class CommandFlag(IntFlag):
    REQ_ONE = 1 << 3  # block status: one extent is enough


class Errno(IntEnum):
    """The protocol's own error numbers; they are the same on every system."""

    EPERM = 1
    EIO = 5
    EINVAL = 22


class _Chunk(IntEnum):
    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    ERROR = (1 << 15) + 1


_DONE = 1  # chunk flag: the last one of its reply
_STATE_HOLE_AND_ZERO = 0b11  # base:allocation


@dataclass(frozen=True, slots=True)
class Request:
    """One request. `command` may be a number that no `Command` has."""

    flags: int
    command: int
    cookie: int
    offset: int
    length: int


class RequestParser:
    """Cuts the transmission phase into requests, however the bytes arrive. A write's payload is dropped unseen."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._skip = 0

    def feed(self, data: bytes | bytearray) -> list[Request]:
        """The requests that `data` completes. `ProtocolError` when the stream is not NBD or a payload is beyond bounds."""
        self._buffer += data
        requests: list[Request] = []
        while True:
            skipped = min(self._skip, len(self._buffer))
            del self._buffer[:skipped]
            self._skip -= skipped
            if self._skip or len(self._buffer) < _REQUEST.size:
                return requests
            magic, *fields = _REQUEST.unpack_from(self._buffer)
            del self._buffer[: _REQUEST.size]
            if magic != _REQUEST_MAGIC:
                raise ProtocolError(f"request magic is {magic:#010x}")
            request = Request(*fields)
            if request.command == Command.WRITE:
                if request.length > MAX_PAYLOAD:
                    raise ProtocolError(f"write of {request.length} bytes, at most {MAX_PAYLOAD} are allowed")
                self._skip = request.length
            requests.append(request)


def simple_reply(cookie: int, error: int = 0) -> bytes:
    """The head of a simple reply; a successful read's data follows it."""
    return _SIMPLE_REPLY.pack(_SIMPLE_REPLY_MAGIC, error, cookie)


def _chunk(kind: _Chunk, cookie: int, length: int, *, done: bool) -> bytes:
    return _CHUNK.pack(_STRUCTURED_REPLY_MAGIC, _DONE if done else 0, kind, cookie, length)


def none_chunk(cookie: int) -> bytes:
    """Success without content; ends the reply."""
    return _chunk(_Chunk.NONE, cookie, 0, done=True)


def data_chunk(cookie: int, offset: int, length: int, *, done: bool) -> bytes:
    """The head of `length` bytes of data, which follow it."""
    return _chunk(_Chunk.OFFSET_DATA, cookie, _OFFSET.size + length, done=done) + _OFFSET.pack(offset)


def hole_chunk(cookie: int, offset: int, length: int, *, done: bool) -> bytes:
    """`length` zeroes that are not sent."""
    return _chunk(_Chunk.OFFSET_HOLE, cookie, _HOLE.size, done=done) + _HOLE.pack(offset, length)


def error_chunk(cookie: int, error: int, message: str) -> bytes:
    """A failure, also after chunks of data; ends the reply."""
    text = message.encode()[:_LONGEST_MESSAGE]
    head = _chunk(_Chunk.ERROR, cookie, _ERROR.size + len(text), done=True)
    return head + _ERROR.pack(error, len(text)) + text


def status_chunk(cookie: int, context: int, extents: Sequence[Extent]) -> bytes:
    """base:allocation of consecutive extents; ends the reply."""
    body = b"".join(_DESCRIPTOR.pack(e.length, _STATE_HOLE_AND_ZERO if e.zero else 0) for e in extents)
    head = _chunk(_Chunk.BLOCK_STATUS, cookie, _CONTEXT.size + len(body), done=True)
    return head + _CONTEXT.pack(context) + body
