"""The first phase of an NBD connection, as a server speaks it: fixed newstyle. No I/O.

Source: "Fixed newstyle negotiation" and "Option types" of the NBD protocol,
https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import StrEnum, auto

from stores.bridge.options import Inbox
from stores.bridge.wire import (
    ALLOCATION,
    CLIENT_FLAGS,
    GREETING,
    INFO_BLOCK_SIZE,
    INFO_EXPORT,
    MAGIC,
    MAX_PAYLOAD,
    OPTION_MAGIC,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    U16,
    U32,
    HandshakeFlag,
    Info,
    Option,
    OptionReply,
    ProtocolError,
    TransmissionFlag,
)

ALLOCATION_ID = 1
"""The number by which block status replies name `base:allocation`."""

_EXPORT_NAME_REPLY = struct.Struct(">QH")

_MOST_QUERIES = 1024
_TRANSMISSION_FLAGS = TransmissionFlag.HAS_FLAGS | TransmissionFlag.READ_ONLY | TransmissionFlag.CAN_MULTI_CONN


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
        raw = self.take(self.number(U32))
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
        self._inbox = Inbox()
        self._no_zeroes = False
        self.phase = Phase.FLAGS
        self.structured = False
        """Whether replies are structured."""
        self.allocation = False
        """Whether the client may ask for block status."""
        self._handlers: dict[int, Callable[[bytes], bytes]] = {
            Option.EXPORT_NAME: self._export_name,
            Option.ABORT: self._abort,
            Option.LIST: self._list,
            Option.INFO: lambda data: self._info(Option.INFO, data),
            Option.GO: lambda data: self._info(Option.GO, data),
            Option.STRUCTURED_REPLY: self._structured_reply,
            Option.LIST_META_CONTEXT: self._list_meta_context,
            Option.SET_META_CONTEXT: self._set_meta_context,
        }

    @property
    def greeting(self) -> bytes:
        return GREETING.pack(MAGIC, OPTION_MAGIC, HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)

    @property
    def rest(self) -> bytes:
        """Bytes of the transmission phase that came along with the last option."""
        return self._inbox.rest

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the client; what to answer. Look at `phase` afterwards. `ProtocolError` when it is not NBD."""
        self._inbox.add(data)
        answer = b""
        if self.phase is Phase.FLAGS and (flags := self._inbox.numbers(CLIENT_FLAGS)) is not None:
            self._client_flags(*flags)
        while self.phase is Phase.OPTIONS and (option := self._inbox.option()) is not None:
            answer += self._answer(*option)
        return answer

    def _client_flags(self, flags: int) -> None:
        known = int(HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)  # ~ of an IntFlag drops unknown bits
        if flags & ~known:
            raise ProtocolError(f"unknown client flags {flags:#x}")
        self._no_zeroes = bool(flags & HandshakeFlag.NO_ZEROES)
        self.phase = Phase.OPTIONS

    def _answer(self, option: int, data: bytes) -> bytes:
        handler = self._handlers.get(option)
        if handler is None:
            return _reply(option, OptionReply.ERR_UNSUP, b"not supported")
        try:
            return handler(data)
        except _Malformed as error:
            return _reply(option, OptionReply.ERR_INVALID, str(error).encode())

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
        return _reply(Option.ABORT, OptionReply.ACK)

    def _list(self, data: bytes) -> bytes:
        _Cursor(data).end()
        name = self._export.encode()
        return _reply(Option.LIST, OptionReply.SERVER, U32.pack(len(name)) + name) + _reply(
            Option.LIST, OptionReply.ACK
        )

    def _info(self, option: Option, data: bytes) -> bytes:
        cursor = _Cursor(data)
        name = cursor.text()
        cursor.take(cursor.number(U16) * U16.size)  # what the client would like to know: it is told all there is
        cursor.end()
        if name != self._export:
            return self._unknown(option)
        export = INFO_EXPORT.pack(Info.EXPORT, self._size, _TRANSMISSION_FLAGS)
        sizes = INFO_BLOCK_SIZE.pack(Info.BLOCK_SIZE, 1, self._preferred, MAX_PAYLOAD)
        if option is Option.GO:
            self.phase = Phase.TRANSMISSION
        return (
            _reply(option, OptionReply.INFO, export)
            + _reply(option, OptionReply.INFO, sizes)
            + _reply(option, OptionReply.ACK)
        )

    def _structured_reply(self, data: bytes) -> bytes:
        _Cursor(data).end()
        self.structured = True
        return _reply(Option.STRUCTURED_REPLY, OptionReply.ACK)

    def _list_meta_context(self, data: bytes) -> bytes:
        name, queries = self._queries(data)
        if name != self._export:
            return self._unknown(Option.LIST_META_CONTEXT)
        wanted = not queries or any(query in (ALLOCATION, "base:") for query in queries)
        return self._contexts(Option.LIST_META_CONTEXT, wanted)

    def _set_meta_context(self, data: bytes) -> bytes:
        self.allocation = False  # each call replaces what an earlier one chose, also when it fails
        name, queries = self._queries(data)
        if name != self._export:
            return self._unknown(Option.SET_META_CONTEXT)
        self.allocation = ALLOCATION in queries
        return self._contexts(Option.SET_META_CONTEXT, self.allocation)

    def _queries(self, data: bytes) -> tuple[str, list[str]]:
        if not self.structured:
            raise _Malformed("structured replies come first")
        cursor = _Cursor(data)
        name = cursor.text()
        count = cursor.number(U32)
        if count > _MOST_QUERIES:
            raise _Malformed("too many queries")
        queries = [cursor.text() for _ in range(count)]
        cursor.end()
        return name, queries

    def _contexts(self, option: Option, wanted: bool) -> bytes:
        context = U32.pack(ALLOCATION_ID) + ALLOCATION.encode()
        return (_reply(option, OptionReply.META_CONTEXT, context) if wanted else b"") + _reply(option, OptionReply.ACK)

    def _unknown(self, option: Option) -> bytes:
        return _reply(option, OptionReply.ERR_UNKNOWN, b"no such export")


def _reply(option: int, kind: OptionReply, data: bytes = b"") -> bytes:
    return OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, kind, len(data)) + data
