"""Encrypted WRITEs and their answers as bytes ([MS-SMB2] 2.2.1.2, 2.2.21, 2.2.22). Pure.

A template is thousands of them, and the library's structures take longer for each than the cipher.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from smbprotocol.header import Commands

# Id, length, credit charge, status (in answers), command, credits, flags, next command, message id, process id, tree id,
# session id, signature: the header, 64 bytes long.
_HEADER = struct.Struct("<4sHHIHHIIQIIQ16s")
_WRITE = struct.Struct("<HHIQ16s16x")  # the fixed part of a WRITE, and where its data begin
_MAGIC = b"\xfeSMB"
_DATA = _HEADER.size + _WRITE.size


@dataclass(frozen=True, slots=True)
class WriteAnswer:
    """`message`: all of it."""

    number: int
    status: int
    credits: int
    message: bytes

    @property
    def body(self) -> bytes:
        return self.message[_HEADER.size :]


def write_request(
    *,
    number: int,
    charge: int,
    session_id: int,
    tree_id: int,
    handle: bytes,
    offset: int,
    length: int,
) -> bytes:
    """All of the message but its data. It asks for as many credits as it costs."""
    header = _HEADER.pack(
        _MAGIC, _HEADER.size, charge, 0, Commands.SMB2_WRITE, charge, 0, 0, number, 0, tree_id, session_id, bytes(16)
    )
    return header + _WRITE.pack(_WRITE.size + 1, _DATA, length, offset, handle)


def write_answer(message: bytes) -> WriteAnswer | None:
    """None for any other message, and for several in one."""
    if len(message) < _HEADER.size:
        return None
    magic, size, _, status, command, granted, _, following, number, *_ = _HEADER.unpack_from(message)
    if (magic, size, command, following) != (_MAGIC, _HEADER.size, Commands.SMB2_WRITE, 0):
        return None
    return WriteAnswer(number, status, granted, message)
