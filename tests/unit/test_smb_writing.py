"""WRITEs and their answers as bytes: the library's structures judge them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from smbprotocol.header import Commands, SMB2HeaderRequest, SMB2HeaderResponse
from smbprotocol.open import SMB2WriteRequest, SMB2WriteResponse

from stores.backends.smb_writing import write_answer, write_request

NUMBER = st.integers(0, 2**64 - 1)


@given(NUMBER, st.integers(1, 128), NUMBER, st.integers(0, 2**32 - 1), st.binary(min_size=16, max_size=16), NUMBER)
def test_requests(number: int, charge: int, session: int, tree: int, handle: bytes, offset: int) -> None:
    data = b"some data"
    written = write_request(
        number=number,
        charge=charge,
        session_id=session,
        tree_id=tree,
        handle=handle,
        offset=offset,
        length=len(data),
    )
    header, body = SMB2HeaderRequest(), SMB2WriteRequest()
    header["command"] = Commands.SMB2_WRITE
    header["message_id"], header["session_id"], header["tree_id"] = number, session, tree
    header["credit_charge"] = header["credit_request"] = charge
    body["file_id"], body["offset"], body["buffer"] = handle, offset, data
    body["length"] = len(data)
    header["data"] = body
    assert written + data == header.pack()


def answer(command: int, **fields: int) -> bytes:
    header, body = SMB2HeaderResponse(), SMB2WriteResponse()
    body["count"] = 5
    header["command"], header["data"] = command, body
    for name, value in fields.items():
        header[name] = value
    return bytes(header.pack())


@given(NUMBER, st.integers(0, 2**32 - 1), st.integers(0, 2**16 - 1))
def test_answers(number: int, status: int, granted: int) -> None:
    message = answer(Commands.SMB2_WRITE, message_id=number, status=status, credit_response=granted)
    found = write_answer(message)
    assert found is not None
    assert (found.number, found.status, found.credits) == (number, status, granted)
    body = SMB2WriteResponse()
    body.unpack(found.body)
    assert body["count"].get_value() == 5


@given(st.binary(max_size=200))
def test_anything(message: bytes) -> None:
    assert write_answer(message) is None


def test_answers_to_something_else_and_several_in_one() -> None:
    assert write_answer(answer(Commands.SMB2_READ)) is None
    assert write_answer(answer(Commands.SMB2_WRITE, next_command=88)) is None
    assert write_answer(answer(Commands.SMB2_WRITE)[:63]) is None
