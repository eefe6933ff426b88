"""Encryption of messages that carry data ([MS-SMB2] 2.2.41, 3.1.4.3), into memory that is used again, and of their answers.

The library makes every message of new pieces of memory, six times as long as the data, and the kernel has to find and clear
them each time: more work than encrypting and sending them. Here nothing but the cipher touches the data.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from smbprotocol.connection import Ciphers

CIPHERS = frozenset({Ciphers.AES_128_GCM, Ciphers.AES_256_GCM})
"""Those that can be used here."""

_PROTECTED = struct.Struct("<12s4xIxxHQ")  # nonce, length, flags and session of the transform header
_ENCRYPTED = 0x0001
_MAGIC = b"\xfdSMB"
_HEADER = 52
_SPARE = 16  # what the cipher wants beyond the data


@dataclass(frozen=True, slots=True)
class Sealed:
    """An encrypted message: the transform header, and the content, which is valid until the next one is sealed."""

    header: bytes
    content: memoryview


class Sealer:
    """Of one connection, for one thread at a time."""

    def __init__(self) -> None:
        self._memory = memoryview(b"")

    def seal(self, parts: Sequence[bytes | memoryview], *, key: bytes, session_id: int) -> Sealed:
        """The message that `parts` make together. A nonce is random, as the library's are: the two share the key."""
        length = sum(map(len, parts))
        if len(self._memory) < length + _SPARE:
            self._memory = memoryview(bytearray(length + _SPARE))
        nonce = os.urandom(12)
        protected = _PROTECTED.pack(nonce, length, _ENCRYPTED, session_id)
        cipher = Cipher(algorithms.AES(key), modes.GCM(nonce)).encryptor()
        cipher.authenticate_additional_data(protected)
        end = 0
        for part in parts:
            end += cipher.update_into(part, self._memory[end:])
        cipher.finalize()
        return Sealed(_MAGIC + cipher.tag + protected, self._memory[:end])


def unsealed(packet: bytes, *, key: bytes, session_id: int) -> bytes | None:
    """What is in an encrypted message of that session; None for any other packet, and for one that was changed on its way."""
    if len(packet) < _HEADER or packet[:4] != _MAGIC:
        return None
    tag, protected = packet[4:20], packet[20:_HEADER]
    nonce, _, flags, session = _PROTECTED.unpack(protected)
    if (flags, session) != (_ENCRYPTED, session_id):
        return None
    try:
        return AESGCM(key).decrypt(nonce, packet[_HEADER:] + tag, protected)
    except InvalidTag:
        return None
