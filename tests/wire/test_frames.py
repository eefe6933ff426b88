"""Frames and messages, byte by byte: `agent/transports/cloudstack/wire.py`."""

from __future__ import annotations

import gzip
import itertools
import struct
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.transports.cloudstack.connection import read
from agent.transports.cloudstack.errors import ContentRefused, LinkProtocolError
from agent.transports.cloudstack.wire import (
    MAX_FRAME,
    MAX_MESSAGE,
    MAX_RECORD,
    Flag,
    Frame,
    FrameReader,
    Message,
    MessageReader,
    decode,
    encode,
    frame,
    slices,
)
from stores.contract import MiB

# ------------------------------------------------------------------------------------------------------ golden bytes

REQUEST = bytes.fromhex(
    "00 00 0025"  # version 1, flags: request, in sequence, from server
    "7fff000000000003"  # sequence
    "00000002"  # size
    "000000505617a7c4"  # management server
    "0000000000000007"  # agent
    "0000000000000007"  # via
    "5b5d"
)
ANSWER = bytes.fromhex("00 00 0004 7fff000000000003 00000002 000000505617a7c4 0000000000000007 0000000000000007 5b5d")
PING = bytes.fromhex("00 00 0003 0000000000000001 00000002 ffffffffffffffff 0000000000000007 0000000000000007 5b5d")
VERSION_3 = bytes.fromhex("02 00 0021 0000000000000005 00000002 0000000000000001 0000000000000007 5b5d")


def test_request_of_a_server() -> None:
    request = decode(REQUEST)
    assert request == Message(
        sequence=0x7FFF000000000003,
        flags=Flag.REQUEST | Flag.IN_SEQUENCE | Flag.FROM_SERVER,
        content=b"[]",
        management_id=0x505617A7C4,
        agent_id=7,
        via=7,
    )
    assert request is not None
    assert request.is_request
    assert encode(request) == REQUEST


def test_answer_copies_the_request_and_its_in_sequence_bit() -> None:
    request = decode(REQUEST)
    assert request is not None
    assert encode(request.answer(b"[]")) == ANSWER


def test_answer_to_an_agent_is_from_the_server() -> None:
    request = Message(1, Flag.REQUEST | Flag.STOP_ON_ERROR | Flag.CONTROL, b"[]")
    assert request.answer(b"[{}]") == Message(1, Flag.STOP_ON_ERROR | Flag.FROM_SERVER, b"[{}]")


def test_request_of_an_agent() -> None:
    assert encode(Message(1, Flag.REQUEST | Flag.STOP_ON_ERROR, b"[]", agent_id=7, via=7)) == PING


def test_version_3_has_no_via() -> None:
    request = decode(VERSION_3)
    assert request is not None
    assert (request.via, request.content) == (7, b"[]")
    assert encode(request) == VERSION_3
    assert encode(request.answer(b"[]"))[:4] == bytes.fromhex("02000000")


@pytest.mark.parametrize("version", [1, 3, 4, 0x7B, 0xFF])
def test_other_versions_are_dropped(version: int) -> None:
    assert decode(bytes([version]) + REQUEST[1:]) is None


def test_unknown_flags_are_ignored() -> None:
    data = bytearray(REQUEST)
    data[2:4] = b"\xff\x3d"  # everything but stop-on-error, control and compressed
    request = decode(data)
    assert request is not None
    assert request.flags == Flag.REQUEST | Flag.IN_SEQUENCE | Flag.FROM_SERVER


def test_size_of_plain_text_is_ignored() -> None:
    data = REQUEST[:12] + struct.pack(">i", -5) + REQUEST[16:]
    request = decode(data)
    assert request is not None
    assert request.content == b"[]"


@pytest.mark.parametrize(("length", "compressed"), [(8191, False), (8192, True), (100_000, True)])
def test_long_text_is_gzip(length: int, compressed: bool) -> None:
    message = Message(1, Flag.REQUEST, b"x" * length)
    data = encode(message)
    assert bool(data[3] & 0x80) is compressed
    assert struct.unpack(">i", data[12:16]) == (length,)
    if compressed:
        assert gzip.decompress(data[40:]) == message.content
    else:
        assert data[40:] == message.content
    assert decode(data) == message


def test_short_text_may_be_gzip() -> None:
    assert decode(compressed(b"[]", 2)) == Message(1, Flag.REQUEST, b"[]")


def test_what_is_too_long_is_not_written() -> None:
    with pytest.raises(ValueError, match="limit"):
        encode(Message(1, Flag.REQUEST, bytes(MAX_MESSAGE)))


# ---------------------------------------------------------------------------------------------------- hostile bytes


def compressed(text: bytes, size: int, *, body: bytes | None = None) -> bytes:
    body = gzip.compress(text) if body is None else body
    return struct.pack(">BBHqiqqq", 0, 0, 0x81, 1, size, -1, -1, -1) + body


@pytest.mark.parametrize("length", [0, 1, 31, 39])
def test_header_cut_short(length: int) -> None:
    with pytest.raises(LinkProtocolError):
        decode(REQUEST[:length])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (compressed(b"x" * 100, 99), "beyond"),
        (compressed(b"x" * 100, 101), "is not the 101 bytes"),
        (compressed(b"x" * 100, 0), "beyond"),
        (compressed(b"x" * 100, -1), "claims -1"),
        (compressed(b"x" * 100, MAX_MESSAGE + 1), "at most"),
        (compressed(b"", 100, body=b""), "is not the 100"),
        (compressed(b"", 100, body=b"plain"), "damaged"),
        (compressed(b"", 100, body=gzip.compress(b"x" * 100)[:-1]), "is not the 100"),
        (compressed(b"", 100, body=gzip.compress(b"x" * 100) + b"more"), "is not the 100"),
        (compressed(b"", 100, body=zlib.compress(b"x" * 100)), "damaged"),
        (compressed(b"", 100, body=gzip.compress(b"x" * 100)[:-8] + bytes(8)), "damaged"),
    ],
    ids=[
        "longer",
        "shorter",
        "nothing claimed",
        "negative",
        "too much claimed",
        "empty",
        "plain",
        "cut short",
        "more behind it",
        "zlib",
        "wrong sum",
    ],
)
def test_gzip_that_lies(data: bytes, says: str) -> None:
    with pytest.raises(LinkProtocolError, match=says):
        decode(data)


@pytest.mark.parametrize("claimed", [1 * MiB, MAX_MESSAGE])
def test_bomb_costs_no_more_than_it_claims(claimed: int) -> None:
    bomb = compressed(b"", claimed, body=gzip.compress(bytes(4 * MAX_MESSAGE), 9))
    tracemalloc.start()
    try:
        with pytest.raises(LinkProtocolError, match="beyond"):
            decode(bomb)
        assert tracemalloc.get_traced_memory()[1] < 3 * claimed
    finally:
        tracemalloc.stop()


def test_claim_alone_costs_nothing() -> None:
    claim = compressed(b"x", MAX_MESSAGE)
    tracemalloc.start()
    try:
        with pytest.raises(LinkProtocolError):
            decode(claim)
        assert tracemalloc.get_traced_memory()[1] < 1 * MiB
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=200))
def test_garbage_is_a_protocol_error_or_nothing_worse(data: bytes) -> None:
    try:
        decode(data)
    except LinkProtocolError:
        return


# ----------------------------------------------------------------------------------------------------------- frames


def test_golden_frames() -> None:
    assert frame(b"abc", follows=False) == bytes.fromhex("00000003") + b"abc"
    assert frame(b"abc", follows=True) == bytes.fromhex("00010003") + b"abc"
    assert list(FrameReader().feed(bytes.fromhex("00010001 61 00000001 62"))) == [Frame(b"a", True), Frame(b"b", False)]


@pytest.mark.parametrize(
    "header", ["00000000", "00004651", "0000ffff", "00014651", "00020001", "80000001", "17030300", "48545450"]
)
def test_impossible_frame_headers(header: str) -> None:
    with pytest.raises(LinkProtocolError):
        list(FrameReader().feed(bytes.fromhex(header)))


def test_largest_frame() -> None:
    assert list(FrameReader().feed(frame(bytes(MAX_FRAME), follows=False))) == [Frame(bytes(MAX_FRAME), False)]


def test_split_at_every_byte() -> None:
    stream = frame(b"first", follows=True) + frame(b"x" * 300, follows=False) + frame(b"\x00", follows=True)
    whole = list(FrameReader().feed(stream))
    for at in range(len(stream) + 1):
        reader = FrameReader()
        assert [*reader.feed(stream[:at]), *reader.feed(stream[at:])] == whole
    reader = FrameReader()
    assert [found for byte in stream for found in reader.feed(bytes([byte]))] == whole


@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=400), st.booleans()), max_size=8),
    st.lists(st.integers(0, 4000), max_size=12),
)
def test_any_frames_in_any_pieces(frames: list[tuple[bytes, bool]], cuts: list[int]) -> None:
    stream = b"".join(frame(payload, follows=follows) for payload, follows in frames)
    reader = FrameReader()
    found: list[Frame] = []
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    for start, end in itertools.pairwise(edges):
        found += reader.feed(stream[start:end])
    assert found == [Frame(payload, follows) for payload, follows in frames]


@given(st.binary(max_size=3 * MAX_RECORD), st.binary(min_size=1, max_size=3 * MAX_RECORD))
def test_messages_out_of_their_slices(first: bytes, second: bytes) -> None:
    reader = MessageReader()
    found = [reader.feed(bytes(piece), follows=follows) for text in (first, second) for piece, follows in slices(text)]
    assert [bytes(message) for message in found if message is not None] == [text for text in (first, second) if text]


def test_slices_are_full_records() -> None:
    assert [(len(piece), follows) for piece, follows in slices(bytes(2 * MAX_RECORD + 1))] == [
        (MAX_RECORD, True),
        (MAX_RECORD, True),
        (1, False),
    ]
    assert [(len(piece), follows) for piece, follows in slices(bytes(MAX_RECORD))] == [(MAX_RECORD, False)]


def test_message_that_never_ends() -> None:
    reader = MessageReader()
    tracemalloc.start()
    try:
        for _ in range(MAX_MESSAGE // MAX_RECORD):
            reader.feed(bytes(MAX_RECORD), follows=True)
        with pytest.raises(LinkProtocolError, match="more than"):
            reader.feed(b"x", follows=True)
        assert tracemalloc.get_traced_memory()[1] < 2.5 * MAX_MESSAGE
    finally:
        tracemalloc.stop()


@given(
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([0, 2]),
    st.binary(max_size=20_000),
    st.integers(0, 127),
)
def test_round_trip(sequence: int, host: int, version: int, content: bytes, bits: int) -> None:
    flags = Flag(bits & 0x67)
    message = Message(sequence, flags, content, -1, host, host, version)
    assert decode(encode(message)) == message
    assert decode(encode(message, compress=False)) == message


@given(st.binary(max_size=300) | st.text(alphabet='[]{}",:\\u0a1 ', max_size=60).map(str.encode), st.booleans())
def test_any_text_is_read_or_refused(content: bytes, cut: bool) -> None:
    data = bytearray(encode(Message(1, Flag.REQUEST, content)))
    if cut:
        del data[-1:]
    try:
        received = read(data)
    except (LinkProtocolError, ContentRefused):
        return
    assert received is not None
    assert received.message.content == b""
    assert data == b""
