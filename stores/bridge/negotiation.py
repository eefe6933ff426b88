"""The first phase of an NBD connection, as a server speaks it: fixed newstyle. No I/O.

Source: "Fixed newstyle negotiation" and "Option types" of the NBD protocol,
https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum, IntFlag, StrEnum, auto

from stores.bridge.wire import MAX_PAYLOAD, ProtocolError

ALLOCATION = "base:allocation"
ALLOCATION_ID = 1
"""The number by which block status replies name `base:allocation`."""

_MAGIC = 0x4E42444D41474943  # "NBDMAGIC"
_OPTION_MAGIC = 0x49484156454F5054  # "IHAVEOPT"
_REPLY_MAGIC = 0x3E889045565A9

_GREETING = struct.Struct(">QQH")
_CLIENT_FLAGS = struct.Struct(">I")
_OPTION = struct.Struct(">QII")
_REPLY = struct.Struct(">QIII")
_U16 = struct.Struct(">H")
_U32 = struct.Struct(">I")
_INFO_EXPORT = struct.Struct(">HQH")
_INFO_BLOCK_SIZE = struct.Struct(">HIII")
_EXPORT_NAME_REPLY = struct.Struct(">QH")

_LONGEST_OPTION = 64 * 1024  # far beyond what any option of ours needs
_MOST_QUERIES = 1024


class _HandshakeFlag(IntFlag):
    FIXED_NEWSTYLE = 1 << 0
    NO_ZEROES = 1 << 1


class _Option(IntEnum):
    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class _Reply(IntEnum):
    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = (1 << 31) + 1
    ERR_INVALID = (1 << 31) + 3
    ERR_UNKNOWN = (1 << 31) + 6


class _Info(IntEnum):
    EXPORT = 0
    BLOCK_SIZE = 3


class _TransmissionFlag(IntFlag):
    HAS_FLAGS = 1 << 0
    READ_ONLY = 1 << 1
    CAN_MULTI_CONN = 1 << 8


_TRANSMISSION_FLAGS = _TransmissionFlag.HAS_FLAGS | _TransmissionFlag.READ_ONLY | _TransmissionFlag.CAN_MULTI_CONN


class Phase(StrEnum):
    FLAGS = auto()
    """The client has yet to answer the greeting."""
    OPTIONS = auto()
    TRANSMISSION = auto()
    """Agreed. What came after the last option is in `rest`."""
    CLOSED = auto()
    """Send what `feed` returned, then close."""


class _Malformed(Exception):
    """An option's data does not have the option's form: answered, and the client may go on."""


class _Cursor:
    """Takes an option's data apart."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        piece = self._data[self._at : self._at + count]
        if len(piece) != count:
            raise _Malformed("shorter than it says")
        self._at += count
        return piece

    def number(self, form: struct.Struct) -> int:
        return int(form.unpack(self.take(form.size))[0])

    def text(self) -> str:
        raw = self.take(self.number(_U32))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise _Malformed("not UTF-8") from None

    def end(self) -> None:
        if self._at != len(self._data):
            raise _Malformed("longer than it says")


class Negotiation:
    """One connection's negotiation about one read-only export. Send `greeting`, then whatever `feed` returns."""

    def __init__(self, export: str, size: int, preferred: int) -> None:
        """`size` of the export and `preferred` size of a request, in bytes."""
        self._export = export
        self._size = size
        self._preferred = preferred
        self._buffer = bytearray()
        self._no_zeroes = False
        self.phase = Phase.FLAGS
        self.structured = False
        """Whether replies are structured."""
        self.allocation = False
        """Whether the client may ask for block status."""
        self._handlers: dict[int, Callable[[bytes], bytes]] = {
            _Option.EXPORT_NAME: self._export_name,
            _Option.ABORT: self._abort,
            _Option.LIST: self._list,
            _Option.INFO: lambda data: self._info(_Option.INFO, data),
            _Option.GO: lambda data: self._info(_Option.GO, data),
            _Option.STRUCTURED_REPLY: self._structured_reply,
            _Option.LIST_META_CONTEXT: self._list_meta_context,
            _Option.SET_META_CONTEXT: self._set_meta_context,
        }

    @property
    def greeting(self) -> bytes:
        return _GREETING.pack(_MAGIC, _OPTION_MAGIC, _HandshakeFlag.FIXED_NEWSTYLE | _HandshakeFlag.NO_ZEROES)

    @property
    def rest(self) -> bytes:
        """Bytes of the transmission phase that came along with the last option."""
        return bytes(self._buffer)

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the client; what to answer. Look at `phase` afterwards. `ProtocolError` when it is not NBD."""
        self._buffer += data
        answer = b""
        if self.phase is Phase.FLAGS and len(self._buffer) >= _CLIENT_FLAGS.size:
            self._client_flags(_CLIENT_FLAGS.unpack(self._take(_CLIENT_FLAGS.size))[0])
        while self.phase is Phase.OPTIONS and (option := self._next_option()) is not None:
            answer += self._answer(*option)
        return answer

    def _take(self, count: int) -> bytes:
        piece = bytes(self._buffer[:count])
        del self._buffer[:count]
        return piece

    def _client_flags(self, flags: int) -> None:
        known = int(_HandshakeFlag.FIXED_NEWSTYLE | _HandshakeFlag.NO_ZEROES)  # ~ of an IntFlag drops unknown bits
        if flags & ~known:
            raise ProtocolError(f"unknown client flags {flags:#x}")
        self._no_zeroes = bool(flags & _HandshakeFlag.NO_ZEROES)
        self.phase = Phase.OPTIONS

    def _next_option(self) -> tuple[int, bytes] | None:
        if len(self._buffer) < _OPTION.size:
            return None
        magic, option, length = _OPTION.unpack_from(self._buffer)
        if magic != _OPTION_MAGIC:
            raise ProtocolError(f"option magic is {magic:#018x}")
        if length > _LONGEST_OPTION:
            raise ProtocolError(f"option {option} with {length} bytes, at most {_LONGEST_OPTION} are allowed")
        if len(self._buffer) < _OPTION.size + length:
            return None
        self._take(_OPTION.size)
        return option, self._take(length)

    def _answer(self, option: int, data: bytes) -> bytes:
        handler = self._handlers.get(option)
        if handler is None:
            return _reply(option, _Reply.ERR_UNSUP, b"not supported")
        try:
            return handler(data)
        except _Malformed as error:
            return _reply(option, _Reply.ERR_INVALID, str(error).encode())

    # ------------------------------------------------------------------------------------------------- options

    def _export_name(self, data: bytes) -> bytes:
        """The old way in. It knows no error reply: an unknown name closes the connection."""
        if data != self._export.encode():
            self.phase = Phase.CLOSED
            return b""
        self.phase = Phase.TRANSMISSION
        padding = b"" if self._no_zeroes else bytes(124)
        return _EXPORT_NAME_REPLY.pack(self._size, _TRANSMISSION_FLAGS) + padding

    def _abort(self, _data: bytes) -> bytes:
        self.phase = Phase.CLOSED
        return _reply(_Option.ABORT, _Reply.ACK)

    def _list(self, data: bytes) -> bytes:
        _Cursor(data).end()
        name = self._export.encode()
        return _reply(_Option.LIST, _Reply.SERVER, _U32.pack(len(name)) + name) + _reply(_Option.LIST, _Reply.ACK)

    def _info(self, option: _Option, data: bytes) -> bytes:
        cursor = _Cursor(data)
        name = cursor.text()
        cursor.take(cursor.number(_U16) * _U16.size)  # what the client would like to know: it is told all there is
        cursor.end()
        if name != self._export:
            return self._unknown(option)
        export = _INFO_EXPORT.pack(_Info.EXPORT, self._size, _TRANSMISSION_FLAGS)
        sizes = _INFO_BLOCK_SIZE.pack(_Info.BLOCK_SIZE, 1, self._preferred, MAX_PAYLOAD)
        if option is _Option.GO:
            self.phase = Phase.TRANSMISSION
        return _reply(option, _Reply.INFO, export) + _reply(option, _Reply.INFO, sizes) + _reply(option, _Reply.ACK)

    def _structured_reply(self, data: bytes) -> bytes:
        _Cursor(data).end()
        self.structured = True
        return _reply(_Option.STRUCTURED_REPLY, _Reply.ACK)

    def _list_meta_context(self, data: bytes) -> bytes:
        name, queries = self._queries(data)
        if name != self._export:
            return self._unknown(_Option.LIST_META_CONTEXT)
        wanted = not queries or any(query in (ALLOCATION, "base:") for query in queries)
        return self._contexts(_Option.LIST_META_CONTEXT, wanted)

    def _set_meta_context(self, data: bytes) -> bytes:
        self.allocation = False  # each call replaces what an earlier one chose, also when it fails
        name, queries = self._queries(data)
        if name != self._export:
            return self._unknown(_Option.SET_META_CONTEXT)
        self.allocation = ALLOCATION in queries
        return self._contexts(_Option.SET_META_CONTEXT, self.allocation)

    def _queries(self, data: bytes) -> tuple[str, list[str]]:
        if not self.structured:
            raise _Malformed("structured replies come first")
        cursor = _Cursor(data)
        name = cursor.text()
        count = cursor.number(_U32)
        if count > _MOST_QUERIES:
            raise _Malformed("too many queries")
        queries = [cursor.text() for _ in range(count)]
        cursor.end()
        return name, queries

    def _contexts(self, option: _Option, wanted: bool) -> bytes:
        context = _U32.pack(ALLOCATION_ID) + ALLOCATION.encode()
        return (_reply(option, _Reply.META_CONTEXT, context) if wanted else b"") + _reply(option, _Reply.ACK)

    def _unknown(self, option: _Option) -> bytes:
        return _reply(option, _Reply.ERR_UNKNOWN, b"no such export")


def _reply(option: int, kind: _Reply, data: bytes = b"") -> bytes:
    return _REPLY.pack(_REPLY_MAGIC, option, kind, len(data)) + data
