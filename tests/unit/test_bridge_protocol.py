"""The NBD codec: what a client of any kind, or of none, may send, in pieces of any size."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stores.bridge.negotiation import ALLOCATION_ID, Negotiation, Phase
from stores.bridge.wire import (
    ALLOCATION,
    MAX_PAYLOAD,
    Command,
    Errno,
    ProtocolError,
    Request,
    RequestParser,
    data_chunk,
    error_chunk,
    hole_chunk,
    none_chunk,
    simple_reply,
    status_chunk,
)
from stores.contract import Extent, MiB

SIZE = 5 * MiB + 1
EXPORT = "template"
FLAGS = struct.pack(">I", 0b11)
ACK, SERVER, INFO, META_CONTEXT = 1, 2, 3, 4
ERR_UNSUP, ERR_INVALID, ERR_UNKNOWN = 0x80000001, 0x80000003, 0x80000006
ABORT, LIST, STARTTLS, INFO_OPTION, GO, STRUCTURED, LIST_META, SET_META = 2, 3, 5, 6, 7, 8, 9, 10
READ_ONLY_MULTI_CONN = 1 | 2 | 1 << 8


def option(number: int, data: bytes = b"") -> bytes:
    return b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data


def name(text: str) -> bytes:
    raw = text.encode()
    return struct.pack(">I", len(raw)) + raw


def go(export: str = EXPORT, *infos: int) -> bytes:
    return name(export) + struct.pack(f">H{len(infos)}H", len(infos), *infos)


def contexts(*queries: str, export: str = EXPORT) -> bytes:
    return name(export) + struct.pack(">I", len(queries)) + b"".join(name(query) for query in queries)


def replies(answer: bytes) -> list[tuple[int, int, bytes]]:
    """(option, kind, data) of every option reply in `answer`, which holds nothing else."""
    found = []
    while answer:
        magic, number, kind, length = struct.unpack_from(">QIII", answer)
        assert magic == 0x3E889045565A9
        found.append((number, kind, answer[20 : 20 + length]))
        answer = answer[20 + length :]
    return found


def kinds(answer: bytes) -> list[int]:
    return [kind for _, kind, _ in replies(answer)]


def negotiation() -> Negotiation:
    return Negotiation(EXPORT, SIZE, 65536)


def asked(*options: bytes) -> tuple[Negotiation, bytes]:
    server = negotiation()
    return server, server.feed(FLAGS + b"".join(options))


# ------------------------------------------------------------------------------------------------ negotiation


def test_greeting_is_fixed_newstyle() -> None:
    assert negotiation().greeting == b"NBDMAGIC" + b"IHAVEOPT" + b"\x00\x03"


def test_go_tells_size_flags_and_block_sizes_and_ends_the_negotiation() -> None:
    server, answer = asked(option(GO, go(EXPORT, 3)))
    assert replies(answer) == [
        (GO, INFO, struct.pack(">HQH", 0, SIZE, READ_ONLY_MULTI_CONN)),
        (GO, INFO, struct.pack(">HIII", 3, 1, 65536, 32 * MiB)),
        (GO, ACK, b""),
    ]
    assert server.phase is Phase.TRANSMISSION
    assert not server.structured
    assert not server.allocation


def test_info_says_the_same_and_goes_on() -> None:
    server, answer = asked(option(INFO_OPTION, go()))
    assert kinds(answer) == [INFO, INFO, ACK]
    assert server.phase is Phase.OPTIONS


@pytest.mark.parametrize("number", [INFO_OPTION, GO, LIST_META, SET_META])
def test_another_export_is_unknown(number: int) -> None:
    data = go("other") if number in (INFO_OPTION, GO) else contexts(export="other")
    server, answer = asked(option(STRUCTURED), option(number, data))
    assert kinds(answer) == [ACK, ERR_UNKNOWN]
    assert server.phase is Phase.OPTIONS


def test_list_names_the_export() -> None:
    _, answer = asked(option(LIST))
    assert replies(answer) == [(LIST, SERVER, name(EXPORT)), (LIST, ACK, b"")]


def test_abort_is_acknowledged_and_closes() -> None:
    server, answer = asked(option(ABORT), option(GO, go()))
    assert replies(answer) == [(ABORT, ACK, b"")]
    assert server.phase is Phase.CLOSED


@pytest.mark.parametrize(("flags", "padding"), [(0b11, 0), (0b01, 124)])
def test_the_old_way_in(flags: int, padding: int) -> None:
    server = negotiation()
    answer = server.feed(struct.pack(">I", flags) + option(1, EXPORT.encode()) + b"after")
    assert answer == struct.pack(">QH", SIZE, READ_ONLY_MULTI_CONN) + bytes(padding)
    assert server.phase is Phase.TRANSMISSION
    assert server.rest == b"after"


def test_the_old_way_in_has_no_error_reply() -> None:
    server, answer = asked(option(1, b"other"))
    assert answer == b""
    assert server.phase is Phase.CLOSED


@pytest.mark.parametrize("number", [STARTTLS, 4, 11, 0xFFFFFFFF])
def test_unknown_options_are_refused_and_the_client_may_go_on(number: int) -> None:
    server, answer = asked(option(number, b"whatever"), option(GO, go()))
    assert kinds(answer) == [ERR_UNSUP, INFO, INFO, ACK]
    assert server.phase is Phase.TRANSMISSION


def test_block_status_is_there_for_whoever_asks() -> None:
    context = struct.pack(">I", ALLOCATION_ID) + ALLOCATION.encode()
    server, answer = asked(option(STRUCTURED), option(SET_META, contexts("qemu:dirty-bitmap:x", ALLOCATION)))
    assert replies(answer)[1:] == [(SET_META, META_CONTEXT, context), (SET_META, ACK, b"")]
    assert server.structured
    assert server.allocation
    assert kinds(server.feed(option(SET_META, contexts()))) == [ACK]
    assert not server.allocation, "the last choice counts"


@pytest.mark.parametrize(
    ("queries", "found"), [((), True), (("base:",), True), ((ALLOCATION,), True), (("base:other", "x"), False)]
)
def test_contexts_are_listed(queries: tuple[str, ...], found: bool) -> None:
    server, answer = asked(option(STRUCTURED), option(LIST_META, contexts(*queries)))
    assert kinds(answer) == ([ACK, META_CONTEXT, ACK] if found else [ACK, ACK])
    assert not server.allocation, "listing chooses nothing"


@pytest.mark.parametrize(
    "broken",
    [
        option(LIST, b"x"),
        option(STRUCTURED, b"x"),
        option(GO, b""),
        option(GO, go()[:-1]),
        option(GO, go() + b"x"),
        option(GO, struct.pack(">I", 0xFFFFFFFF) + b"abc"),
        option(GO, struct.pack(">I", 1) + b"\xff\x00\x00"),
        option(SET_META, contexts(ALLOCATION)),  # before structured replies
    ],
)
def test_malformed_options_are_answered_and_change_nothing(broken: bytes) -> None:
    server, answer = asked(broken)
    assert kinds(answer) == [ERR_INVALID]
    assert server.phase is Phase.OPTIONS
    assert not server.structured
    assert kinds(server.feed(option(GO, go()))) == [INFO, INFO, ACK]


def test_too_many_queries_are_not_counted_out() -> None:
    _, answer = asked(option(STRUCTURED), option(SET_META, name(EXPORT) + struct.pack(">I", 0xFFFFFFFF)))
    assert kinds(answer) == [ACK, ERR_INVALID]


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">I", 1 << 5),
        FLAGS + b"IHAVEOPX" + bytes(8),
        FLAGS + b"IHAVEOPT" + struct.pack(">II", GO, 65537),
        FLAGS + b"IHAVEOPT" + struct.pack(">II", GO, 0xFFFFFFFF),
    ],
)
def test_what_is_not_nbd_or_beyond_bounds_ends_the_connection(garbage: bytes) -> None:
    with pytest.raises(ProtocolError):
        negotiation().feed(garbage)


SCRIPT = FLAGS + b"".join(
    [
        option(STARTTLS),
        option(STRUCTURED),
        option(LIST),
        option(GO, b"bad"),
        option(SET_META, contexts(ALLOCATION)),
        option(GO, go(EXPORT, 3, 1)),
        b"rest of it",
    ]
)


@given(st.lists(st.integers(0, len(SCRIPT))))
def test_negotiation_does_not_depend_on_how_bytes_arrive(cuts: list[int]) -> None:
    whole = negotiation()
    expected = whole.feed(SCRIPT)
    server = negotiation()
    borders = [0, *sorted(cuts), len(SCRIPT)]
    answer = b"".join(server.feed(SCRIPT[a:b]) for a, b in itertools.pairwise(borders))
    assert answer == expected
    assert (server.phase, server.structured, server.allocation) == (Phase.TRANSMISSION, True, True)
    assert server.rest == b"rest of it"


@pytest.mark.parametrize("at", range(len(SCRIPT)))
def test_negotiation_split_at_every_byte(at: int) -> None:
    server = negotiation()
    assert server.feed(SCRIPT[:at]) + server.feed(SCRIPT[at:]) == negotiation().feed(SCRIPT)


@given(st.binary(max_size=300))
def test_negotiation_survives_anything(data: bytes) -> None:
    server = negotiation()
    try:
        replies(server.feed(FLAGS + data))
    except ProtocolError:
        return
    assert server.phase in (Phase.OPTIONS, Phase.TRANSMISSION, Phase.CLOSED)


# --------------------------------------------------------------------------------------------------- requests


def packed(request: Request) -> bytes:
    head = struct.pack(
        ">IHHQQI", 0x25609513, request.flags, request.command, request.cookie, request.offset, request.length
    )
    return head + bytes(request.length) if request.command == Command.WRITE else head


u16, u64 = st.integers(0, 2**16 - 1), st.integers(0, 2**64 - 1)
any_request = st.one_of(
    st.builds(Request, flags=u16, command=u16.filter(lambda c: c != 1), cookie=u64, offset=u64, length=st.just(7)),
    st.builds(Request, flags=u16, command=st.just(1), cookie=u64, offset=u64, length=st.integers(0, 100)),
)


@given(st.lists(any_request, max_size=5), st.lists(st.integers(0, 600)))
def test_requests_come_out_as_they_went_in(requests: list[Request], cuts: list[int]) -> None:
    stream = b"".join(packed(request) for request in requests)
    parser = RequestParser()
    borders = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    found: list[Request] = []
    for a, b in itertools.pairwise(borders):
        found += parser.feed(stream[a:b])
    assert found == requests


def test_a_long_payload_is_dropped_without_being_kept() -> None:
    parser = RequestParser()
    write = Request(0, Command.WRITE, 1, 0, MAX_PAYLOAD)
    read = Request(0, Command.READ, 2, 0, 1)
    assert parser.feed(packed(write)[:28]) == [write]
    for _ in range(32):
        assert parser.feed(bytes(MiB)) == []
    assert parser.feed(packed(read)) == [read]


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00" * 28,
        b"GET /template HTTP/1.1\r\nHost: x\r\n",
        struct.pack(">IHHQQI", 0x25609513, 0, 1, 0, 0, MAX_PAYLOAD + 1),
    ],
)
def test_a_stream_that_cannot_be_followed_is_an_error(garbage: bytes) -> None:
    with pytest.raises(ProtocolError):
        RequestParser().feed(garbage)


# ---------------------------------------------------------------------------------------------------- replies

COOKIE = 0x1122334455667788


def chunk(raw: bytes) -> tuple[int, int, int, int, bytes]:
    """(magic, flags, type, cookie, payload); the announced length is checked."""
    magic, flags, kind, cookie, length = struct.unpack_from(">IHHQI", raw)
    assert len(raw) == 20 + length
    return magic, flags, kind, cookie, raw[20:]


def test_replies_are_laid_out_as_the_protocol_says() -> None:
    magic = 0x668E33EF
    assert simple_reply(COOKIE, 5) == struct.pack(">IIQ", 0x67446698, 5, COOKIE)
    assert chunk(none_chunk(COOKIE)) == (magic, 1, 0, COOKIE, b"")
    assert chunk(data_chunk(COOKIE, 9, 3, done=False) + b"abc") == (magic, 0, 1, COOKIE, struct.pack(">Q", 9) + b"abc")
    assert chunk(hole_chunk(COOKIE, 9, 3, done=True)) == (magic, 1, 2, COOKIE, struct.pack(">QI", 9, 3))
    assert chunk(error_chunk(COOKIE, Errno.EIO, "why")) == (magic, 1, 0x8001, COOKIE, struct.pack(">IH", 5, 3) + b"why")
    status = chunk(status_chunk(COOKIE, 1, [Extent(0, 10, zero=False), Extent(10, 6, zero=True)]))
    assert status == (magic, 1, 5, COOKIE, struct.pack(">IIIII", 1, 10, 0, 6, 3))


def test_a_long_message_is_cut_to_what_a_client_must_take() -> None:
    assert len(chunk(error_chunk(COOKIE, Errno.EIO, "x" * 10_000))[4]) == 6 + 4096
