"""The NBD client against servers that are broken or mean harm: a typed error, nothing written outside, nothing left."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import struct
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from hypervisors.nbd import connect
from hypervisors.nbd.connection import IN_FLIGHT, REQUEST
from stores.bridge.wire import (
    ALLOCATION,
    CHUNK,
    DONE,
    ERROR,
    MAX_PAYLOAD,
    STRUCTURED_REPLY_MAGIC,
    Chunk,
    Command,
    Errno,
    Request,
    data_chunk,
    error_chunk,
    hole_chunk,
    none_chunk,
    simple_reply,
    status_chunk,
)
from stores.contract import Extent, KiB, MiB
from stores.errors import (
    AccessDenied,
    DeviceFault,
    IntegrityError,
    NotFound,
    ObjectChanged,
    StorageError,
    StoreError,
    StoreUnsupported,
    Unavailable,
)
from stores.transfer.engine import TransferEngine
from tests.doubles.scripted_nbd import Answer, scripted
from tests.objects import zero

SIZE = 3 * MiB + 512
CONTENT = random.Random(7).randbytes(SIZE)
MARK = 0xEE


@pytest.fixture
def socket() -> Iterator[Path]:
    """A short path, as sockets want."""
    with tempfile.TemporaryDirectory(prefix="nbd") as directory:
        yield Path(directory) / "s"


@pytest.fixture(autouse=True)
async def nothing_is_left(socket: Path) -> AsyncIterator[None]:
    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd"))
    yield
    assert asyncio.all_tasks() == {asyncio.current_task()}
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == descriptors


def whole(request: Request) -> bytes:
    """A read as it should be answered."""
    data = CONTENT[request.offset : request.offset + request.length]
    return data_chunk(request.cookie, request.offset, request.length, done=True) + data


def in_pieces(request: Request) -> bytes:
    """The same in three chunks, last part first, zeroes between, the end told by itself."""
    at, cookie, third = request.offset, request.cookie, request.length // 3
    last = CONTENT[at + 2 * third : at + request.length]
    return b"".join(
        [
            data_chunk(cookie, at + 2 * third, len(last), done=False) + last,
            hole_chunk(cookie, at + third, third, done=False),
            data_chunk(cookie, at, third, done=False) + CONTENT[at : at + third],
            none_chunk(cookie),
        ]
    )


def chunk(request: Request, kind: int, payload: bytes, *, flags: int = DONE, cookie: int | None = None) -> bytes:
    told = request.cookie if cookie is None else cookie
    return CHUNK.pack(STRUCTURED_REPLY_MAGIC, flags, kind, told, len(payload)) + payload


async def test_chunks_in_any_order_and_zeroes(engine: TransferEngine, socket: Path) -> None:
    buffer = memoryview(bytearray([MARK]) * (REQUEST + 44 * KiB))
    async with scripted(socket, in_pieces, size=SIZE), connect(socket, "disk", engine=engine) as disk:
        await disk.read_into(512, buffer)
    expected = bytearray(CONTENT[512 : 512 + len(buffer)])
    for start, length in [(0, REQUEST), (REQUEST, len(buffer) - REQUEST)]:
        third = length // 3
        expected[start + third : start + 2 * third] = bytes(third)
    assert buffer == expected


@pytest.mark.parametrize("limit", [512, 1000, 100 * KiB, 1 << 30])
async def test_any_range_in_requests_that_the_server_takes(engine: TransferEngine, socket: Path, limit: int) -> None:
    rng = random.Random(limit)
    async with (
        scripted(socket, whole, size=SIZE, max_request=min(limit, MAX_PAYLOAD)) as server,
        connect(socket, "disk", engine=engine, contexts=()) as disk,
    ):
        for most in [0, 1, 511, 512, 513, 999, 1001, 100 * KiB + 1, REQUEST, REQUEST + 1, 700_000]:
            offset = rng.randrange(SIZE - most)
            assert await disk.read(offset, most) == CONTENT[offset : offset + most]
        assert await disk.read(SIZE - 5, 5) == CONTENT[-5:]
    assert max(request.length for request in server.requests) <= min(limit, REQUEST)


async def test_replies_in_another_order_than_requests(engine: TransferEngine, socket: Path) -> None:
    asked: list[Request] = []
    lengths = [REQUEST] * (SIZE // REQUEST) + [SIZE % REQUEST]

    def last_first(request: Request) -> bytes:
        asked.append(request)
        return b"" if len(asked) < len(lengths) else b"".join(whole(one) for one in reversed(asked))

    async with scripted(socket, last_first, size=SIZE), connect(socket, "disk", engine=engine) as disk:
        assert await disk.read(0, SIZE) == CONTENT
    assert [one.length for one in asked] == lengths


async def test_no_more_requests_under_way_than_servers_work_on(engine: TransferEngine, socket: Path) -> None:
    size = 2 * IN_FLIGHT * REQUEST
    waiting: list[Request] = []

    def reluctant(request: Request) -> bytes:
        """Answers when no further request can come before an answer."""
        waiting.append(request)
        if len(waiting) < IN_FLIGHT and request.offset + request.length < size:
            return b""
        oldest = waiting.pop(0)
        return hole_chunk(oldest.cookie, oldest.offset, oldest.length, done=True) + (
            b"".join(hole_chunk(o.cookie, o.offset, o.length, done=True) for o in waiting)
            if request.offset + request.length == size
            else b""
        )

    async with scripted(socket, reluctant, size=size) as server:
        async with connect(socket, "disk", engine=engine) as disk:
            assert zero(await disk.read(0, size))
        assert len(server.requests) == 2 * IN_FLIGHT


@pytest.mark.parametrize(("connections", "readers"), [(1, 5), (4, 20)])
async def test_as_many_connections_as_allowed_and_no_more(
    engine: TransferEngine, socket: Path, connections: int, readers: int
) -> None:
    async with scripted(socket, whole, size=SIZE) as server:
        async with connect(socket, "disk", engine=engine, connections=connections, contexts=()) as disk:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(disk.read(number * KiB, 64 * KiB)) for number in range(readers)]
            assert [task.result() for task in tasks] == [CONTENT[n * KiB : n * KiB + 64 * KiB] for n in range(readers)]
            assert disk.parallel == connections
        assert server.most <= connections
    assert server.left == server.most, "clients take leave"


async def test_bulk_reads_go_through_few_threads_and_whole(
    engine: TransferEngine, socket: Path, tmp_path: Path
) -> None:
    async with scripted(socket, whole, size=SIZE), connect(socket, "disk", engine=engine, contexts=()) as disk:
        await engine.fetch(disk, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == CONTENT


# ------------------------------------------------------------------------------------------------ broken replies


def wrong_magic(request: Request) -> bytes:
    return b"\0\0\0\0" + whole(request)[4:]


def unknown_cookie(request: Request) -> bytes:
    return chunk(request, Chunk.NONE, b"", cookie=request.cookie + 99)


def answered_twice(request: Request) -> bytes:
    return whole(request) + (whole(request) if request.offset == 0 else b"")


def leaves_out(request: Request) -> bytes:
    return data_chunk(request.cookie, request.offset, 512, done=True) + bytes(512)


def says_nothing_and_is_done(request: Request) -> bytes:
    return none_chunk(request.cookie)


def overlapping(request: Request) -> bytes:
    part = data_chunk(request.cookie, request.offset, 1024, done=False) + bytes(1024)
    return part + data_chunk(request.cookie, request.offset + 512, 1024, done=False) + bytes(1024)


def hole_over_data(request: Request) -> bytes:
    return hole_chunk(request.cookie, request.offset, request.length, done=False) + whole(request)


def beyond_its_end(request: Request) -> bytes:
    return data_chunk(request.cookie, request.offset, request.length + 1, done=True) + bytes(request.length + 1)


def before_its_start(request: Request) -> bytes:
    return data_chunk(request.cookie, max(0, request.offset - 1) or SIZE, 512, done=False) + bytes(512)


def huge_hole(request: Request) -> bytes:
    return hole_chunk(request.cookie, request.offset, (1 << 32) - 1, done=True)


def endless_data(request: Request) -> bytes:
    return CHUNK.pack(STRUCTURED_REPLY_MAGIC, 0, Chunk.OFFSET_DATA, request.cookie, (1 << 32) - 1) + bytes(100)


def empty_data(request: Request) -> bytes:
    return data_chunk(request.cookie, request.offset, 0, done=False)


def empty_hole(request: Request) -> bytes:
    return hole_chunk(request.cookie, request.offset, 0, done=False)


def none_that_does_not_end(request: Request) -> bytes:
    return chunk(request, Chunk.NONE, b"", flags=0) * 10


def unknown_type(request: Request) -> bytes:
    return chunk(request, 77, bytes(8))


def status_for_a_read(request: Request) -> bytes:
    return status_chunk(request.cookie, 1, [Extent(0, 512, zero=True)])


def simple(request: Request) -> bytes:
    return simple_reply(request.cookie) + bytes(request.length)


def error_without_error(request: Request) -> bytes:
    return error_chunk(request.cookie, 0, "all is well")


def error_longer_than_its_chunk(request: Request) -> bytes:
    return chunk(request, Chunk.ERROR, ERROR.pack(5, 1000) + b"short")


def endless_error(request: Request) -> bytes:
    return CHUNK.pack(STRUCTURED_REPLY_MAGIC, DONE, Chunk.ERROR, request.cookie, 1 << 31) + bytes(100)


@pytest.mark.parametrize(
    "answer",
    [
        wrong_magic,
        unknown_cookie,
        answered_twice,
        leaves_out,
        says_nothing_and_is_done,
        overlapping,
        hole_over_data,
        beyond_its_end,
        before_its_start,
        huge_hole,
        endless_data,
        empty_data,
        empty_hole,
        none_that_does_not_end,
        unknown_type,
        status_for_a_read,
        simple,
        error_without_error,
        error_longer_than_its_chunk,
        endless_error,
    ],
)
async def test_what_is_against_the_protocol_fails_the_read_alone(
    engine: TransferEngine, socket: Path, answer: Answer
) -> None:
    """And writes nothing around the buffer; the next read has a new connection."""
    answers = [answer]
    memory = bytearray([MARK]) * (2 * REQUEST + 200)
    async with scripted(socket, lambda request: answers[0](request), size=SIZE) as server:
        async with connect(socket, "disk", engine=engine, contexts=(), stall_s=10) as disk:
            with memoryview(memory) as view, pytest.raises(StoreError, match="protocol") as failure:
                await disk.read_into(0, view[100:-100])
            assert failure.value.kind == "StoreError"
            answers[0] = whole
            assert await disk.read(0, 2 * REQUEST) == CONTENT[: 2 * REQUEST]
        assert server.most == 1
    assert memory[:100] == memory[-100:] == bytearray([MARK]) * 100


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (Errno.EIO, DeviceFault),
        (Errno.EPERM, AccessDenied),
        (Errno.ENOMEM, Unavailable),
        (Errno.ESHUTDOWN, Unavailable),
        (Errno.ENOTSUP, StoreUnsupported),
        (Errno.EINVAL, StoreError),
        (75, StoreError),
    ],
)
async def test_errors_that_a_server_tells(
    engine: TransferEngine, socket: Path, number: int, kind: type[StoreError]
) -> None:
    def failing(request: Request) -> bytes:
        if request.offset < REQUEST:
            return whole(request)
        return hole_chunk(request.cookie, request.offset, 512, done=False) + error_chunk(
            request.cookie, number, "sector\x1b[31m lost"
        )

    async with scripted(socket, failing, size=SIZE), connect(socket, "disk", engine=engine) as disk:
        with pytest.raises(StorageError, match=r"sector .*lost") as failure:
            await disk.read(0, 2 * REQUEST)
    assert type(failure.value) is kind
    assert failure.value.message.isprintable()


async def test_error_of_another_type_than_the_common_one(engine: TransferEngine, socket: Path) -> None:
    """NBD_REPLY_TYPE_ERROR_OFFSET: the same, followed by where it happened."""

    def failing(request: Request) -> bytes:
        return chunk(request, Chunk.ERROR + 1, ERROR.pack(5, 4) + b"lost" + struct.pack(">Q", request.offset))

    async with scripted(socket, failing, size=SIZE), connect(socket, "disk", engine=engine) as disk:
        with pytest.raises(DeviceFault, match="lost"):
            await disk.read(0, 512)


@pytest.mark.parametrize("sent", [0, 3, 20, 27, 28, 1000, REQUEST - 1])
async def test_the_connection_ends_in_mid_reply(engine: TransferEngine, socket: Path, sent: int) -> None:
    async with (
        scripted(socket, lambda request: whole(request)[:sent], size=SIZE) as server,
        connect(socket, "disk", engine=engine, contexts=()) as disk,
    ):
        server.hang_up = True
        with pytest.raises(Unavailable, match="closed"):
            await disk.read(0, REQUEST)


async def test_a_silent_server_is_given_up(engine: TransferEngine, socket: Path) -> None:
    async with (
        scripted(socket, lambda request: whole(request)[:1000], size=SIZE),
        connect(socket, "disk", engine=engine, contexts=(), stall_s=0.1) as disk,
    ):
        with pytest.raises(Unavailable, match=r"nothing for 0\.1 s"):
            await disk.read(0, REQUEST)


async def test_nobody_writes_into_the_buffer_after_a_cancellation(engine: TransferEngine, socket: Path) -> None:
    async with (
        scripted(socket, lambda request: whole(request)[:1000], size=SIZE) as server,
        connect(socket, "disk", engine=engine, contexts=()) as disk,
    ):
        buffer = memoryview(bytearray(REQUEST))
        reading = asyncio.create_task(disk.read_into(0, buffer))
        while not any(buffer[800:]):
            await asyncio.sleep(0.001)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        before = bytes(buffer)
        while server.open:
            await asyncio.sleep(0.001)
        assert buffer == before
        server.answer = whole
        assert await disk.read(0, SIZE) == CONTENT


@pytest.mark.parametrize(("offset", "length"), [(0, SIZE + 1), (SIZE, 1), (-1, 1), (1 << 62, 10)])
async def test_beyond_the_end_nothing_is_asked(engine: TransferEngine, socket: Path, offset: int, length: int) -> None:
    async with scripted(socket, whole, size=SIZE) as server, connect(socket, "disk", engine=engine) as disk:
        with pytest.raises(IntegrityError):
            await disk.read(offset, length)
        with pytest.raises(IntegrityError):
            await disk.extents(offset, length)
        assert server.requests == []


# ------------------------------------------------------------------------------------------------------ extents


def statuses(*told: list[Extent]) -> Answer:
    answers = iter(told)
    return lambda request: status_chunk(request.cookie, 1, next(answers))


def of(*parts: tuple[int, bool]) -> list[Extent]:
    return [Extent(0, length, zero) for length, zero in parts]


async def test_extents_are_joined_over_replies_and_cut_at_the_end(engine: TransferEngine, socket: Path) -> None:
    told = statuses(of((512, True)), of((512, True), (512, False), (512, False)), of((1 << 31, False)))
    async with scripted(socket, told, size=1 << 40), connect(socket, "disk", engine=engine) as disk:
        found = await disk.extents(4096, 10000)
    assert found == [Extent(4096, 1024, zero=True), Extent(5120, 10000 - 1024, zero=False)]


async def test_a_large_empty_disk_takes_few_requests(engine: TransferEngine, socket: Path) -> None:
    size = 8 << 40
    step = (4 << 30) - MiB

    def empty(request: Request) -> bytes:
        return status_chunk(request.cookie, 1, of((request.length, True)))

    async with scripted(socket, empty, size=size) as server:
        async with connect(socket, "disk", engine=engine) as disk:
            assert await disk.extents(0, size) == [Extent(0, size, zero=True)]
        assert len(server.requests) == -(-size // step)


async def test_more_extents_than_are_asked_for_at_once(engine: TransferEngine, socket: Path) -> None:
    """In replies that end in mid extent: 7 blocks each, of which every three have one state."""
    blocks = 30_000

    def scattered(request: Request) -> bytes:
        first = request.offset // 512
        states = [(512, block // 3 % 2 == 1) for block in range(first, min(first + 7, blocks))]
        return status_chunk(request.cookie, 1, of(*states))

    async with scripted(socket, scattered, size=blocks * 512), connect(socket, "disk", engine=engine) as disk:
        found = await disk.extents(0, blocks * 512)
    assert found == [Extent(at * 512, 3 * 512, zero=at // 3 % 2 == 1) for at in range(0, blocks, 3)]


def no_extents(request: Request) -> bytes:
    return status_chunk(request.cookie, 1, [])


def status_never_told(request: Request) -> bytes:
    return none_chunk(request.cookie)


def of_length_zero(request: Request) -> bytes:
    return status_chunk(request.cookie, 1, of((512, True), (0, False)))


def more_after_the_end(request: Request) -> bytes:
    return status_chunk(request.cookie, 1, of((request.length, True), (512, False)))


def of_another_context(request: Request) -> bytes:
    return status_chunk(request.cookie, 2, of((request.length, True)))


def status_twice(request: Request) -> bytes:
    one = bytearray(status_chunk(request.cookie, 1, of((512, True))))
    one[4:6] = bytes(2)
    return bytes(one) * 2


def half_an_extent(request: Request) -> bytes:
    return chunk(request, Chunk.BLOCK_STATUS, struct.pack(">III", 1, 512, 0)[:-2])


def status_too_long(request: Request) -> bytes:
    return CHUNK.pack(STRUCTURED_REPLY_MAGIC, DONE, Chunk.BLOCK_STATUS, request.cookie, 64 * MiB + 4) + bytes(100)


@pytest.mark.parametrize(
    "answer",
    [
        no_extents,
        status_never_told,
        of_length_zero,
        more_after_the_end,
        of_another_context,
        status_twice,
        half_an_extent,
        status_too_long,
        endless_data,
        wrong_magic,
        unknown_cookie,
    ],
)
async def test_extents_against_the_protocol(
    engine: TransferEngine, socket: Path, answer: Callable[[Request], bytes]
) -> None:
    async with scripted(socket, answer, size=SIZE), connect(socket, "disk", engine=engine, stall_s=10) as disk:
        with pytest.raises(StoreError, match="protocol") as failure:
            await disk.extents(0, SIZE)
        assert failure.value.kind == "StoreError"


async def test_extents_that_the_server_fails_to_find(engine: TransferEngine, socket: Path) -> None:
    answer: Answer = lambda request: error_chunk(request.cookie, Errno.EIO, "no map")  # noqa: E731
    async with scripted(socket, answer, size=SIZE), connect(socket, "disk", engine=engine) as disk:
        with pytest.raises(DeviceFault, match="no map"):
            await disk.extents(0, SIZE)


async def test_an_iteration_given_up_leaves_the_connection_usable(engine: TransferEngine, socket: Path) -> None:
    def changing(request: Request) -> bytes:
        return status_chunk(request.cookie, 1, of((512, True), (512, False)))

    async with scripted(socket, changing, size=SIZE) as server:
        async with connect(socket, "disk", engine=engine) as disk:
            iteration = disk.each_extent(0, SIZE)
            assert await anext(iteration) == Extent(0, 512, zero=True)
            await iteration.aclose()
            assert len(await disk.extents(0, 1024)) == 2
        assert {request.command for request in server.requests} == {Command.BLOCK_STATUS}
        assert server.most == 2


# -------------------------------------------------------------------------------------------------- negotiation


async def test_an_unknown_export(engine: TransferEngine, socket: Path) -> None:
    async with scripted(socket, whole, size=SIZE):
        with pytest.raises(NotFound, match="other"):
            async with connect(socket, "other", engine=engine):
                pass


async def test_a_missing_bitmap(engine: TransferEngine, socket: Path) -> None:
    async with scripted(socket, whole, size=SIZE) as server:
        with pytest.raises(NotFound, match="full backup"):
            async with connect(socket, "disk", engine=engine, contexts=(ALLOCATION, "qemu:dirty-bitmap:b0")):
                pass
        assert server.requests == []


async def test_only_contexts_that_were_asked_for(engine: TransferEngine, socket: Path) -> None:
    async with scripted(socket, whole, size=SIZE), connect(socket, "disk", engine=engine, contexts=()) as disk:
        assert await disk.extents(5, 10) == [Extent(5, 10, zero=False)]
        assert await disk.extents(5, 0) == []
        with pytest.raises(ValueError, match="b0"):
            await disk.dirty("qemu:dirty-bitmap:b0", 0, SIZE)


async def test_no_server(engine: TransferEngine, socket: Path) -> None:
    with pytest.raises(NotFound):
        async with connect(socket, "disk", engine=engine):
            pass


async def test_a_socket_on_which_nobody_listens(engine: TransferEngine, socket: Path) -> None:
    async with scripted(socket, whole, size=SIZE):
        os.link(socket, socket.with_name("kept"))
    with pytest.raises(Unavailable):
        async with connect(socket.with_name("kept"), "disk", engine=engine):
            pass


async def test_a_server_that_says_nothing(engine: TransferEngine, socket: Path) -> None:
    async with scripted(socket, whole, size=SIZE, greeting=b""):
        with pytest.raises(Unavailable, match="nothing for"):
            async with connect(socket, "disk", engine=engine, stall_s=0.1):
                pass


async def test_a_server_of_something_else(engine: TransferEngine, socket: Path) -> None:
    async with scripted(socket, whole, size=SIZE, greeting=b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n"):
        with pytest.raises(StoreError, match="protocol"):
            async with connect(socket, "disk", engine=engine):
                pass


async def test_another_export_in_the_same_place(engine: TransferEngine, socket: Path) -> None:
    async with (
        scripted(socket, whole, size=SIZE) as server,
        connect(socket, "disk", engine=engine, contexts=()) as disk,
    ):
        server.size = SIZE + 512
        server.hang_up = True
        with pytest.raises(Unavailable):
            await disk.read(0, SIZE)
        with pytest.raises(ObjectChanged, match="another one"):
            await disk.read(0, SIZE)
