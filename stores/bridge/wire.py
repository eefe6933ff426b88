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

ALLOCATION = "base:allocation"
"""The context that tells data from holes."""

MAX_PAYLOAD = 32 * MiB
"""The largest read or write that a client may ask for: what the protocol lets clients assume anyway."""

MAGIC = 0x4E42444D41474943  # "NBDMAGIC"
OPTION_MAGIC = 0x49484156454F5054  # "IHAVEOPT"
OPTION_REPLY_MAGIC = 0x3E889045565A9
_REQUEST_MAGIC = 0x25609513
_SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF

GREETING = struct.Struct(">QQH")
CLIENT_FLAGS = struct.Struct(">I")
OPTION = struct.Struct(">QII")
OPTION_REPLY = struct.Struct(">QIII")
U16 = struct.Struct(">H")
U32 = struct.Struct(">I")
INFO_EXPORT = struct.Struct(">HQH")
INFO_BLOCK_SIZE = struct.Struct(">HIII")

_REQUEST = struct.Struct(">IHHQQI")
_SIMPLE_REPLY = struct.Struct(">IIQ")
CHUNK = struct.Struct(">IHHQI")
OFFSET = struct.Struct(">Q")
HOLE = struct.Struct(">QI")
ERROR = struct.Struct(">IH")
CONTEXT = struct.Struct(">I")
DESCRIPTOR = struct.Struct(">II")

LONGEST_MESSAGE = 4096  # strings on the wire, by the protocol


class ProtocolError(Exception):
    """The other side said something after which its stream can no longer be followed: only closing is left."""


class HandshakeFlag(IntFlag):
    FIXED_NEWSTYLE = 1 << 0
    NO_ZEROES = 1 << 1


class Option(IntEnum):
    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class OptionReply(IntEnum):
    """Of a server. From `1 << 31` on they say no."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = (1 << 31) + 1
    ERR_POLICY = (1 << 31) + 2
    ERR_INVALID = (1 << 31) + 3
    ERR_UNKNOWN = (1 << 31) + 6
    ERR_SHUTDOWN = (1 << 31) + 7


class Info(IntEnum):
    EXPORT = 0
    BLOCK_SIZE = 3


class TransmissionFlag(IntFlag):
    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    CAN_MULTI_CONN = 1 << 8


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
    ENOMEM = 12
    EINVAL = 22
    ENOTSUP = 95
    ESHUTDOWN = 108


class Chunk(IntEnum):
    NONE = 0
    OFFSET_DATA = 1
    OFFSET_HOLE = 2
    BLOCK_STATUS = 5
    ERROR = (1 << 15) + 1


DONE = 1  # chunk flag: the last one of its reply
STATE_ZERO = 0b10  # base:allocation: reads as zeroes
_STATE_HOLE_AND_ZERO = 0b01 | STATE_ZERO


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


def request(command: Command, cookie: int, offset: int = 0, length: int = 0) -> bytes:
    """One request without a payload and without flags."""
    return _REQUEST.pack(_REQUEST_MAGIC, 0, command, cookie, offset, length)


def simple_reply(cookie: int, error: int = 0) -> bytes:
    """The head of a simple reply; a successful read's data follows it."""
    return _SIMPLE_REPLY.pack(_SIMPLE_REPLY_MAGIC, error, cookie)


def _chunk(kind: Chunk, cookie: int, length: int, *, done: bool) -> bytes:
    return CHUNK.pack(STRUCTURED_REPLY_MAGIC, DONE if done else 0, kind, cookie, length)


def none_chunk(cookie: int) -> bytes:
    """Success without content; ends the reply."""
    return _chunk(Chunk.NONE, cookie, 0, done=True)


def data_chunk(cookie: int, offset: int, length: int, *, done: bool) -> bytes:
    """The head of `length` bytes of data, which follow it."""
    return _chunk(Chunk.OFFSET_DATA, cookie, OFFSET.size + length, done=done) + OFFSET.pack(offset)


def hole_chunk(cookie: int, offset: int, length: int, *, done: bool) -> bytes:
    """`length` zeroes that are not sent."""
    return _chunk(Chunk.OFFSET_HOLE, cookie, HOLE.size, done=done) + HOLE.pack(offset, length)


def error_chunk(cookie: int, error: int, message: str) -> bytes:
    """A failure, also after chunks of data; ends the reply."""
    text = message.encode()[:LONGEST_MESSAGE]
    head = _chunk(Chunk.ERROR, cookie, ERROR.size + len(text), done=True)
    return head + ERROR.pack(error, len(text)) + text


def status_chunk(cookie: int, context: int, extents: Sequence[Extent]) -> bytes:
    """base:allocation of consecutive extents; ends the reply."""
    body = b"".join(DESCRIPTOR.pack(e.length, _STATE_HOLE_AND_ZERO if e.zero else 0) for e in extents)
    head = _chunk(Chunk.BLOCK_STATUS, cookie, CONTEXT.size + len(body), done=True)
    return head + CONTEXT.pack(context) + body
