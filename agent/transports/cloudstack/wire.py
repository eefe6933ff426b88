"""What a management server's port carries, in bytes and values; no input or output here.

Two layers, both big endian. Inside TLS a *message* is a header of 40 bytes and JSON text, which may be gzip. Outside TLS
every record is preceded by a *link frame*'s four bytes in clear: the length, and whether another frame of the same message
follows. Layout, flags and limits are those of CloudStack's `Request` and `Link`, in versions 1 and 3 of its protocol.

Reading is tolerant where peers differ (unknown flags, a plain message's size field) and strict where a length decides how
much memory is taken; whatever breaks a rule is `LinkProtocolError`, after which a connection cannot be read on.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntFlag

from agent.transports.cloudstack.errors import LinkProtocolError
from stores.contract import KiB, MiB

MAX_FRAME = 18_000  # bytes of one link frame; peers drop the connection above it
MAX_MESSAGE = (
    32 * MiB
)  # of one message, header included, and of its JSON text when that is gzip; ours, the protocol has none
MAX_RECORD = 16 * KiB  # plain bytes of one TLS record
GZIP_FROM = 8192  # bytes of JSON text from which on peers compress

_FRAME = struct.Struct(">I")
_FOLLOWS = 0x10000
_V1, _V3 = 0, 2  # ordinals of the protocol's versions; the one between was never sent
_HEADER = struct.Struct(">BBHqiqq")
_VIA = struct.Struct(">q")
_PIECE = 64 * KiB


class Flag(IntFlag):
    """Bits of a message's header that mean something today."""

    REQUEST = 0x01
    STOP_ON_ERROR = 0x02
    IN_SEQUENCE = 0x04  # the server's queue for this agent waits for an answer with this bit
    FROM_SERVER = 0x20
    CONTROL = 0x40  # between management servers
    COMPRESSED = 0x80


_KNOWN = Flag.REQUEST | Flag.STOP_ON_ERROR | Flag.IN_SEQUENCE | Flag.FROM_SERVER | Flag.CONTROL | Flag.COMPRESSED
_COPIED = Flag.STOP_ON_ERROR | Flag.IN_SEQUENCE


@dataclass(frozen=True, slots=True)
class Message:
    """One request or answer. `content` is the JSON text in UTF-8, never compressed; `flags` do not have COMPRESSED."""

    sequence: int
    flags: Flag
    content: bytes
    management_id: int = -1
    agent_id: int = -1
    via: int = -1
    version: int = _V1

    @property
    def is_request(self) -> bool:
        return Flag.REQUEST in self.flags

    def answer(self, content: bytes) -> Message:
        """The answer to this request. In-sequence is copied: without it the server's queue would wait for ever."""
        flags = self.flags & _COPIED
        if Flag.FROM_SERVER not in self.flags:
            flags |= Flag.FROM_SERVER
        return Message(self.sequence, flags, content, self.management_id, self.agent_id, self.via, self.version)


# ------------------------------------------------------------------------------------------------------ messages


def encode(message: Message, *, compress: bool = True) -> bytes:
    """The message as it goes into TLS. From `GZIP_FROM` bytes on its text is compressed, as peers do, unless `compress` is
    false, which every peer reads as well. ValueError above `MAX_MESSAGE`: whoever makes the text keeps it below."""
    size = len(message.content)
    if size > MAX_MESSAGE - _HEADER.size - _VIA.size:
        raise ValueError(f"a message of {size} bytes is beyond the limit of {MAX_MESSAGE}")
    flags, body = message.flags, message.content
    if compress and size >= GZIP_FROM:
        flags |= Flag.COMPRESSED
        body = gzip.compress(body, compresslevel=1, mtime=0)
    header = _HEADER.pack(message.version, 0, flags, message.sequence, size, message.management_id, message.agent_id)
    via = _VIA.pack(message.via) if message.version != _V3 else b""
    return b"".join((header, via, body))


def decode(data: bytes | bytearray) -> Message | None:
    """The message that `data` is. None: it is of a version that nobody speaks, which is dropped, as peers do.

    `LinkProtocolError` for a header cut short and for gzip that is damaged, is not the size it says, or is beyond the limit.
    """
    if not data:
        raise LinkProtocolError("the management server sent an empty message")
    if data[0] not in (_V1, _V3):
        return None
    start = _HEADER.size + (_VIA.size if data[0] == _V1 else 0)
    if len(data) < start:
        raise LinkProtocolError(f"a message needs a header of {start} bytes and has {len(data)}")
    version, _, bits, sequence, size, management_id, agent_id = _HEADER.unpack_from(data)
    via = _VIA.unpack_from(data, _HEADER.size)[0] if version == _V1 else agent_id
    flags = Flag(bits & _KNOWN)
    body = memoryview(data)[start:]
    content = _decompress(body, size) if Flag.COMPRESSED in flags else bytes(body)
    return Message(sequence, flags & ~Flag.COMPRESSED, content, management_id, agent_id, via, version)


def _decompress(body: memoryview, size: int) -> bytes:
    """One gzip member (RFC 1952) of exactly `size` bytes; memory grows with what is there, never with what is claimed."""
    if not 0 <= size <= MAX_MESSAGE:
        raise LinkProtocolError(f"a compressed message claims {size} bytes, and at most {MAX_MESSAGE} are read")
    inflater = zlib.decompressobj(wbits=31)
    pieces: list[bytes] = []
    left = size
    try:
        for start in range(0, len(body), _PIECE):
            piece = inflater.decompress(body[start : start + _PIECE], left + 1)
            left -= len(piece)
            if left < 0:
                raise LinkProtocolError(f"a compressed message expands beyond the {size} bytes it claims", limit=size)
            pieces.append(piece)
    except zlib.error as error:
        raise LinkProtocolError(f"a compressed message is damaged: {error}") from error
    if left or not inflater.eof or inflater.unused_data:
        raise LinkProtocolError(f"a compressed message is not the {size} bytes it claims")
    return b"".join(pieces)


# --------------------------------------------------------------------------------------------------- link frames


@dataclass(frozen=True, slots=True)
class Frame:
    """`payload` is one or more whole TLS records."""

    payload: bytes
    follows: bool


def frame(payload: bytes, *, follows: bool) -> bytes:
    return _FRAME.pack(len(payload) | (_FOLLOWS if follows else 0)) + payload


def slices(message: bytes) -> Iterator[tuple[memoryview, bool]]:
    """The pieces of a message that become one TLS record and one frame each, and whether another follows."""
    view = memoryview(message)
    for start in range(0, len(view), MAX_RECORD):
        end = start + MAX_RECORD
        yield view[start:end], end < len(view)


class FrameReader:
    """Link frames out of a byte stream that arrives in any pieces. Holds less than one frame and one piece."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that are complete with `data`. LinkProtocolError as soon as a header is impossible."""
        self._buffer += data
        while len(self._buffer) >= _FRAME.size:
            (header,) = _FRAME.unpack_from(self._buffer)
            length = header & 0xFFFF
            if header & ~(_FOLLOWS | 0xFFFF):
                raise LinkProtocolError(
                    f"{header:08x} is no frame header: is something else than CloudStack listening?"
                )
            if not 0 < length <= MAX_FRAME:
                raise LinkProtocolError(f"a frame of {length} bytes, and 1 to {MAX_FRAME} are allowed", limit=MAX_FRAME)
            end = _FRAME.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[_FRAME.size : end])
            del self._buffer[:end]
            yield Frame(payload, bool(header & _FOLLOWS))


class MessageReader:
    """Messages out of decrypted frames. Holds one message, of `MAX_MESSAGE` bytes at most."""

    def __init__(self) -> None:
        self._message = bytearray()

    def feed(self, plain: bytes, *, follows: bool) -> bytearray | None:
        """The whole message when `plain` was its end."""
        if len(self._message) + len(plain) > MAX_MESSAGE:
            raise LinkProtocolError(f"a message of more than {MAX_MESSAGE} bytes", limit=MAX_MESSAGE)
        self._message += plain
        if follows:
            return None
        message, self._message = self._message, bytearray()
        return message
