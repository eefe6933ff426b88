"""What a link asks of a server before it trusts it, and what it may ask of it at once. Decided without a server."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from smbprotocol.exceptions import SMBException
from smbprotocol.header import Commands, NtStatus, Smb2Flags, SMB2HeaderResponse

from stores.backends.smb_connection import CREDIT, SmbConnection
from stores.backends.smb_link import PIECE, WIDTH, shape
from stores.backends.smb_place import SmbPlace
from stores.backends.smb_transport import Transport


@given(st.integers(0, 10_000), st.sampled_from([CREDIT, 3 * CREDIT, PIECE]))
def test_what_is_under_way_is_paid_for(granted: int, largest: int) -> None:
    piece, width = shape(granted, largest)
    assert 0 < piece <= largest
    assert 1 <= width <= WIDTH
    assert width * -(-piece // CREDIT) <= max(1, granted)


def test_enough_credits_give_the_whole_width() -> None:
    assert shape(WIDTH * PIECE // CREDIT + 8, PIECE) == (PIECE, WIDTH)


def connection(*, encrypted: bool, signed: bool) -> SmbConnection:
    transport = Transport("host", 445, connect_timeout_s=1, silence_s=1)
    made = SmbConnection(SmbPlace("host", "share"), transport, 1)
    made.session_table[7] = SimpleNamespace(encrypt_data=encrypted, signing_required=signed, signing_key=b"k" * 16)
    return made


def plain_answer(*, status: int = NtStatus.STATUS_SUCCESS, signed: bool = False) -> SMB2HeaderResponse:
    header = SMB2HeaderResponse()
    header["command"] = Commands.SMB2_READ
    header["status"] = status
    header["session_id"] = 7
    if signed:
        header["flags"].set_flag(Smb2Flags.SMB2_FLAGS_SIGNED)
    return header


@pytest.mark.parametrize("signed", [False, True])
def test_plain_answer_in_an_encrypted_session_is_refused(signed: bool) -> None:
    with pytest.raises(SMBException, match="unencrypted"):
        connection(encrypted=True, signed=False).verify_signature(plain_answer(signed=signed), 7)


def test_unsigned_answer_in_a_signed_session_is_refused() -> None:
    made = connection(encrypted=False, signed=True)
    with pytest.raises(SMBException, match="without a signature"):
        made.verify_signature(plain_answer(), 7)
    made.verify_signature(plain_answer(status=NtStatus.STATUS_PENDING), 7)


def test_unsigned_answer_passes_where_nothing_was_asked_for() -> None:
    connection(encrypted=False, signed=False).verify_signature(plain_answer(), 7)
