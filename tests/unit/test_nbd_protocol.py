"""The client's half of NBD without I/O: negotiation with a server's half, however cut; replies, however told."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hypervisors.nbd.negotiation import Negotiation
from hypervisors.nbd.replies import ReadReply, Run, chunk_head, joined, runs
from stores.bridge.negotiation import ALLOCATION_ID, Phase
from stores.bridge.negotiation import Negotiation as ServerNegotiation
from stores.bridge.wire import (
    ALLOCATION,
    CHUNK,
    GREETING,
    INFO_BLOCK_SIZE,
    INFO_EXPORT,
    MAGIC,
    MAX_PAYLOAD,
    OPTION_MAGIC,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    Info,
    Option,
    OptionReply,
    ProtocolError,
    TransmissionFlag,
    error_chunk,
    status_chunk,
)
from stores.contract import Extent, MiB
from stores.errors import AccessDenied, NotFound, StoreError, StoreUnsupported, Unavailable
from stores.secret import Secret

SIZE = 5 * MiB + 1
GREETING_BYTES = GREETING.pack(MAGIC, OPTION_MAGIC, 3)
FLAGS = int(TransmissionFlag.HAS_FLAGS | TransmissionFlag.READ_ONLY)


def reply(option: Option, kind: int, data: bytes = b"") -> bytes:
    return OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, kind, len(data)) + data


STRUCTURED = reply(Option.STRUCTURED_REPLY, OptionReply.ACK)
EXPORT = reply(Option.GO, OptionReply.INFO, INFO_EXPORT.pack(Info.EXPORT, SIZE, FLAGS))
GONE = reply(Option.GO, OptionReply.ACK)


def negotiated(*told: bytes, context: str | None = None) -> Negotiation:
    """What comes of it when a server says this, one option after the other."""
    client = Negotiation("disk", context)
    for data in (GREETING_BYTES, *told):
        client.feed(data)
    return client


# ------------------------------------------------------------------------------------------------------ negotiation


@given(
    cuts=st.lists(st.integers(1, 40), max_size=60), context=st.sampled_from([None, ALLOCATION, "qemu:dirty-bitmap:ü"])
)
def test_agrees_with_a_server_however_the_bytes_are_cut(cuts: list[int], context: str | None) -> None:
    server, client = ServerNegotiation("ümläut", SIZE, 4096), Negotiation("ümläut", context)
    pieces = iter(cuts)
    waiting = server.greeting
    while waiting:
        count = next(pieces, len(waiting))
        answer = client.feed(waiting[:count])
        waiting = waiting[count:] + server.feed(answer)
    assert server.phase is Phase.TRANSMISSION
    assert server.structured
    assert client.export is not None
    assert (client.export.size, client.export.max_request) == (SIZE, MAX_PAYLOAD)
    assert client.export.many_connections
    assert client.context_id == (ALLOCATION_ID if context == ALLOCATION else None)
    assert server.allocation == (context == ALLOCATION)


def test_a_server_that_says_little_is_enough() -> None:
    export = negotiated(STRUCTURED, EXPORT, GONE).export
    assert export is not None
    assert not export.many_connections
    assert export.size == SIZE


def test_information_that_nobody_needs_is_passed_over() -> None:
    assert negotiated(STRUCTURED, reply(Option.GO, OptionReply.INFO, b"\0\1name"), EXPORT, GONE).export is not None


def test_a_servers_limit_holds_and_ours_too() -> None:
    for most, expected in [(4096, 4096), ((1 << 32) - 1, MAX_PAYLOAD)]:
        sizes = reply(Option.GO, OptionReply.INFO, INFO_BLOCK_SIZE.pack(Info.BLOCK_SIZE, 1, 4096, most))
        export = negotiated(STRUCTURED, EXPORT, sizes, GONE).export
        assert export is not None
        assert export.max_request == expected


def test_a_server_without_contexts_can_be_read_all_the_same() -> None:
    refused = reply(Option.SET_META_CONTEXT, OptionReply.ERR_UNSUP)
    client = negotiated(STRUCTURED, refused, EXPORT, GONE, context=ALLOCATION)
    assert client.export is not None
    assert client.context_id is None


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        ([reply(Option.STRUCTURED_REPLY, OptionReply.ERR_UNSUP)], StoreUnsupported),
        ([STRUCTURED, reply(Option.GO, OptionReply.ERR_UNSUP)], StoreUnsupported),
        ([STRUCTURED, reply(Option.GO, OptionReply.ERR_INVALID, b"no\x1b[31m")], StoreUnsupported),
        ([STRUCTURED, reply(Option.GO, OptionReply.ERR_UNKNOWN, b"which?")], NotFound),
        ([STRUCTURED, reply(Option.GO, OptionReply.ERR_POLICY)], AccessDenied),
        ([STRUCTURED, reply(Option.GO, OptionReply.ERR_SHUTDOWN)], Unavailable),
    ],
)
def test_refusals(told: Sequence[bytes], kind: type[StoreError]) -> None:
    with pytest.raises(kind) as failure:
        negotiated(*told)
    assert failure.value.message.isprintable()


def test_the_old_way_of_negotiating_is_not_spoken() -> None:
    for greeting in (GREETING.pack(MAGIC, OPTION_MAGIC, 0), GREETING.pack(MAGIC, 0x420281861253, 3)):
        with pytest.raises(StoreUnsupported, match="newstyle"):
            Negotiation("disk", None).feed(greeting)


BROKEN_NEGOTIATIONS = {
    "reply magic": [b"\0" * 20],
    "endless reply": [OPTION_REPLY.pack(OPTION_REPLY_MAGIC, Option.STRUCTURED_REPLY, 1, 1 << 31)],
    "another option": [reply(Option.GO, OptionReply.ACK)],
    "unknown reply": [reply(Option.STRUCTURED_REPLY, 9)],
    "reply of another option": [reply(Option.STRUCTURED_REPLY, OptionReply.INFO, bytes(12))],
    "no size": [STRUCTURED, GONE],
    "short size": [STRUCTURED, reply(Option.GO, OptionReply.INFO, struct.pack(">H", 0) + bytes(5))],
    "no type": [STRUCTURED, reply(Option.GO, OptionReply.INFO, b"\0")],
    "impossible size": [STRUCTURED, reply(Option.GO, OptionReply.INFO, INFO_EXPORT.pack(0, 1 << 63, FLAGS))],
    "no requests": [STRUCTURED, reply(Option.GO, OptionReply.INFO, INFO_BLOCK_SIZE.pack(3, 1, 1, 0))],
    "never ends": [STRUCTURED, EXPORT * 2000],
    "speaks first": [STRUCTURED, EXPORT, GONE + b"x"],
}


@pytest.mark.parametrize("told", BROKEN_NEGOTIATIONS.values(), ids=BROKEN_NEGOTIATIONS.keys())
def test_negotiations_against_the_protocol(told: Sequence[bytes]) -> None:
    with pytest.raises(ProtocolError):
        negotiated(*told)


@pytest.mark.parametrize(
    "told",
    [b"", b"\0\0\0\1", b"\0\0\0\1base:other", struct.pack(">I", 1) + b"\xff\xfe"],
)
def test_contexts_that_were_not_asked_for(told: bytes) -> None:
    with pytest.raises(ProtocolError, match="not asked for"):
        negotiated(STRUCTURED, reply(Option.SET_META_CONTEXT, OptionReply.META_CONTEXT, told), context=ALLOCATION)


def test_a_context_told_twice() -> None:
    one = reply(Option.SET_META_CONTEXT, OptionReply.META_CONTEXT, struct.pack(">I", 1) + ALLOCATION.encode())
    with pytest.raises(ProtocolError, match="twice"):
        negotiated(STRUCTURED, one + one, context=ALLOCATION)


@given(st.binary(max_size=200), st.integers(0, 3))
def test_any_bytes_end_in_an_error_of_ours_or_in_waiting(data: bytes, good: int) -> None:
    client = Negotiation("disk", None)
    for told in [GREETING_BYTES, STRUCTURED, EXPORT][:good]:
        client.feed(told)
    try:
        client.feed(data)
    except (ProtocolError, StoreError):
        return
    assert client.export is None


# ---------------------------------------------------------------------------------------------------------- replies


@given(st.data(), st.integers(1, 1000), st.integers(0, 1 << 40))
def test_any_partition_in_any_order_is_whole(data: st.DataObject, length: int, offset: int) -> None:
    borders = sorted({0, length, *data.draw(st.lists(st.integers(0, length), max_size=20))})
    parts = data.draw(st.permutations(list(itertools.pairwise(borders))))
    read = ReadReply(offset, length)
    for number, (start, end) in enumerate(parts):
        with pytest.raises(ProtocolError, match="leaves out"):
            read.finish()
        assert read.place(offset + start, end - start) == (start, end)
        again, _ = parts[data.draw(st.integers(0, number))]
        with pytest.raises(ProtocolError, match="twice"):
            read.place(offset + again, 1)
    read.finish()


@given(st.integers(0, 100), st.integers(1, 100), st.integers(0, 300), st.integers(0, 300))
def test_nothing_outside_of_a_request_is_placed(offset: int, length: int, at: int, count: int) -> None:
    inside = count > 0 and offset <= at and at + count <= offset + length
    read = ReadReply(offset, length)
    if inside:
        start, end = read.place(at, count)
        assert 0 <= start < end <= length
    else:
        with pytest.raises(ProtocolError):
            read.place(at, count)


@given(
    st.lists(st.tuples(st.integers(1, 1000), st.integers(0, 3)), min_size=1, max_size=30),
    st.integers(0, 1 << 40),
    st.integers(0, 500),
)
def test_runs_are_those_that_were_told(parts: list[tuple[int, int]], offset: int, beyond: int) -> None:
    """Joined where neighbours are alike, and the last one cut where it reaches beyond the request."""
    total = sum(length for length, _ in parts)
    length = total - min(beyond, parts[-1][0] - 1)
    payload = struct.pack(">I", 7) + b"".join(struct.pack(">II", *part) for part in parts)
    found = runs(payload, context_id=7, offset=offset, length=length)
    states = [state for size, state in parts for _ in range(size)][:length]
    assert [run.state for run in found for _ in range(run.length)] == states
    assert found[0].offset == offset
    assert all(a.end == b.offset and a.state != b.state for a, b in itertools.pairwise(found))


def test_runs_with_a_gap_are_not_joined() -> None:
    parts = [Run(0, 5, 1), Run(10, 5, 1), Run(15, 5, 1)]
    assert list(joined(parts)) == [Run(0, 5, 1), Run(10, 10, 1)]
    assert list(joined([])) == []


@given(st.binary(min_size=CHUNK.size, max_size=CHUNK.size))
def test_any_head_is_refused_or_of_bounded_length(data: bytes) -> None:
    """But for data, which have to fit into the request, whatever follows a head fits into memory."""
    for head in (data, struct.pack(">I", 0x668E33EF) + data[4:]):
        try:
            found = chunk_head(head)
        except ProtocolError:
            continue
        assert found.length <= 8 * MiB + 4 or found.kind == 1


@pytest.mark.parametrize("good", [error_chunk(5, 22, "no"), status_chunk(5, 1, [Extent(0, 9, zero=True)])])
def test_heads_of_what_servers_send(good: bytes) -> None:
    head = chunk_head(good[: CHUNK.size])
    assert (head.cookie, head.length, head.done) == (5, len(good) - CHUNK.size, True)


# ------------------------------------------------------------------------------------------------------------- TLS

GREETED = b"NBDMAGICIHAVEOPT\0\3"
STARTTLS = (3).to_bytes(4) + b"IHAVEOPT" + (5).to_bytes(4) + bytes(4)


def reply_to_starttls(kind: int, data: bytes = b"") -> bytes:
    return (0x3E889045565A9).to_bytes(8) + (5).to_bytes(4) + kind.to_bytes(4) + len(data).to_bytes(4) + data


def test_nothing_is_asked_for_before_the_connection_is_secured() -> None:
    client = Negotiation(Secret("disk"), None, tls=True)
    assert client.feed(GREETED) == STARTTLS
    assert client.feed(reply_to_starttls(1)) == b""
    assert client.handshake_due
    assert client.secured() == b"IHAVEOPT" + (8).to_bytes(4) + bytes(4), "structured replies"


def test_what_came_in_the_clear_is_not_taken_for_what_is_secured() -> None:
    client = Negotiation(Secret("disk"), None, tls=True)
    client.feed(GREETED)
    with pytest.raises(ProtocolError, match="before it is asked"):
        client.feed(reply_to_starttls(1) + reply_to_starttls(1))


def test_servers_without_tls_are_told_no_name() -> None:
    client = Negotiation(Secret("disk"), None, tls=True)
    client.feed(GREETED)
    with pytest.raises(StoreUnsupported, match="does not offer TLS") as caught:
        client.feed(reply_to_starttls((1 << 31) + 1, b"disk"))
    assert "disk" not in f"{caught.value} {caught.value.details}"
