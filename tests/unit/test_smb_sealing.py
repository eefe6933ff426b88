"""Messages that are encrypted into memory that is used again: the library, which opens them, and the cipher judge them."""

from __future__ import annotations

import os

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st
from smbprotocol.connection import SMB2TransformHeader

from stores.backends import smb_sealing
from stores.backends.smb_sealing import Sealed, Sealer


def unsealed(sealed: Sealed, key: bytes) -> tuple[int, bytes]:
    """Session and message; fails where a bit is another."""
    header = SMB2TransformHeader()
    header.unpack(sealed.header + bytes(sealed.content))
    assert header["flags"].get_value() == 1
    message = AESGCM(key).decrypt(
        header["nonce"].get_value()[:12], bytes(sealed.content) + header["signature"].get_value(), sealed.header[20:]
    )
    assert header["original_message_size"].get_value() == len(message)
    return header["session_id"].get_value(), message


@given(
    st.lists(st.lists(st.binary(max_size=5000), min_size=1, max_size=4), min_size=1, max_size=5),
    st.sampled_from([16, 32]),
    st.integers(0, 2**64 - 1),
)
def test_messages_are_what_was_sealed(messages: list[list[bytes]], bits: int, session: int) -> None:
    """One after the other from the same memory, longer and shorter ones."""
    key, sealer = os.urandom(bits), Sealer()
    for parts in messages:
        sealed = sealer.seal([parts[0], *(memoryview(part) for part in parts[1:])], key=key, session_id=session)
        message = b"".join(parts)
        assert unsealed(sealed, key) == (session, message)
        packet = sealed.header + bytes(sealed.content)
        assert smb_sealing.unsealed(packet, key=key, session_id=session) == message


@given(st.binary(min_size=1, max_size=200), st.data())
def test_what_was_changed_or_is_of_others_is_not_opened(message: bytes, data: st.DataObject) -> None:
    sealed = Sealer().seal([message], key=bytes(16), session_id=7)
    packet = bytearray(sealed.header + bytes(sealed.content))
    assert smb_sealing.unsealed(bytes(packet), key=bytes(16), session_id=8) is None
    assert smb_sealing.unsealed(bytes(packet), key=b"x" * 16, session_id=7) is None
    cut = data.draw(st.integers(0, len(packet) - 1))
    assert smb_sealing.unsealed(bytes(packet[:cut]), key=bytes(16), session_id=7) is None
    spare = range(32, 36)  # of the nonce's field, which other ciphers need: protected all the same
    at = data.draw(st.integers(0, len(packet) - 1) | st.sampled_from(spare))
    packet[at] ^= 1 << data.draw(st.integers(0, 7))
    assert smb_sealing.unsealed(bytes(packet), key=bytes(16), session_id=7) is None


def test_no_nonce_comes_twice() -> None:
    sealer = Sealer()
    headers = [sealer.seal([b"same"], key=bytes(16), session_id=1).header for _ in range(1000)]
    assert len({header[20:32] for header in headers}) == len(headers)
