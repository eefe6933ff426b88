"""The messages of an NBD negotiation, cut out of what arrives, for servers and for clients. No I/O.

Source: "Fixed newstyle negotiation" of the NBD protocol,
https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md.
"""

from __future__ import annotations

import struct

from stores.bridge.wire import OPTION, OPTION_MAGIC, OPTION_REPLY, OPTION_REPLY_MAGIC, ProtocolError

LONGEST = 64 * 1024
"""Most bytes of an option's data, or of one reply's: those in use stay under 5 KiB (a name of 4096 bytes and a few numbers)."""


class Inbox:
    """What the other side has said, until it is taken."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def add(self, data: bytes) -> None:
        self._buffer += data

    @property
    def rest(self) -> bytes:
        """What has come and is not taken yet."""
        return bytes(self._buffer)

    def numbers(self, form: struct.Struct) -> tuple[int, ...] | None:
        """The next bytes in that form, or None while they are not all there."""
        return form.unpack(self._take(form.size)) if len(self._buffer) >= form.size else None

    def option(self) -> tuple[int, bytes] | None:
        """Number and data of an option, or None while it is not whole. `ProtocolError` for what is none, or too long."""
        found = self._message(OPTION, OPTION_MAGIC, "option")
        return (found[0][0], found[1]) if found else None

    def option_reply(self) -> tuple[int, int, bytes] | None:
        """An option's number, the type of a reply to it and its data; as `option`."""
        found = self._message(OPTION_REPLY, OPTION_REPLY_MAGIC, "option reply")
        return (found[0][0], found[0][1], found[1]) if found else None

    def _message(self, form: struct.Struct, wanted: int, what: str) -> tuple[list[int], bytes] | None:
        """The numbers between magic and length, and the data."""
        if len(self._buffer) < form.size:
            return None
        magic, *numbers, length = form.unpack_from(self._buffer)
        if magic != wanted:
            raise ProtocolError(f"{what} magic is {magic:#018x}")
        if length > LONGEST:
            raise ProtocolError(f"{what} {numbers[0]} with {length} bytes, at most {LONGEST} are allowed")
        if len(self._buffer) < form.size + length:
            return None
        self._take(form.size)
        return numbers, self._take(length)

    def _take(self, count: int) -> bytes:
        piece = bytes(self._buffer[:count])
        del self._buffer[:count]
        return piece
