"""The bridge against the tools that will use it, against clients that mean harm, and against stores that fail."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import os
import random
import stat
import struct
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from stores.bridge import Memory, serve
from stores.contract import Extent, KiB, MiB, ObjectInfo, RangeReader
from stores.errors import AlreadyExists, InvalidReference, ObjectChanged, PolicyRefused, StoreUnsupported, Unavailable
from stores.transfer.engine import TransferEngine
from stores.transfer.http import HttpPatience, HttpRangeReader, HttpTarget
from tests.doubles.nbd_client import (
    BLOCK_STATUS,
    DISC,
    GO,
    READ,
    TRIM,
    WRITE,
    WRITE_ZEROES,
    NbdClient,
    connected,
    negotiated,
    option,
)
from tests.servers import NginxServer

EPERM, EIO, EINVAL = 1, 5, 22
HOLE = 3 * MiB


def disk(seed: int = 1) -> bytes:
    """10 MiB and a bit: data, a hole of 3 MiB from 4 MiB on, data."""
    rng = random.Random(seed)
    return rng.randbytes(4 * MiB) + bytes(HOLE) + rng.randbytes(3 * MiB + 512)


class Source(RangeReader):
    """Content in memory, with known holes. `error` fails reads past `good`; `gate` holds them up."""

    def __init__(self, content: bytes, holes: Sequence[tuple[int, int]] = ()) -> None:
        self.info = ObjectInfo("object", len(content), version="1")
        self.content = memoryview(content)
        self.holes = holes
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Unavailable | ObjectChanged | None = None
        self.good = 0
        self.reads: list[tuple[int, int]] = []
        self.under_way = 0
        self.most = 0

    @property
    def fetched(self) -> int:
        return sum(length for _, length in self.reads)

    async def read_into(self, offset: int, buffer: memoryview) -> None:
        self.reads.append((offset, len(buffer)))
        self.under_way += len(buffer)
        self.most = max(self.most, self.under_way)
        try:
            await self.gate.wait()
            await asyncio.sleep(0)
            if self.error is not None and offset + len(buffer) > self.good:
                raise self.error
            buffer[:] = self.content[offset : offset + len(buffer)]
        finally:
            self.under_way -= len(buffer)

    async def extents(self, offset: int, length: int) -> Sequence[Extent]:
        found, at, end = [], offset, offset + length
        for start, stop in self.holes:
            start, stop = max(start, at), min(stop, end)
            if start >= stop:
                continue
            if start > at:
                found.append(Extent(at, start - at, zero=False))
            found.append(Extent(start, stop - start, zero=True))
            at = stop
        return [*found, Extent(at, end - at, zero=False)] if at < end else found


@pytest.fixture
def socket() -> Iterator[Path]:
    """A short path, as sockets want."""
    with tempfile.TemporaryDirectory(prefix="nbd") as directory:
        yield Path(directory) / "s" / "export.sock"


@pytest.fixture(autouse=True)
async def nothing_is_left(socket: Path) -> AsyncIterator[None]:
    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd"))
    yield
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert not socket.exists()
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == descriptors


def url(socket: Path) -> str:
    return f"nbd+unix:///?socket={socket}"


async def tool(*argv: object) -> bytes:
    """Standard output of a tool that succeeds."""
    process = await asyncio.create_subprocess_exec(
        *map(str, argv), stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return output


def sha256(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


async def whole(client: NbdClient, size: int, step: int = MiB) -> bytes:
    """Everything, read in order."""
    content = bytearray(size)
    for offset in range(0, size, step):
        reply = await client.ask(READ, offset, min(step, size - offset))
        assert reply.error == 0
        if client.structured:
            for at, data in reply.data.items():
                content[at : at + len(data)] = data
        else:
            content[offset : offset + len(reply.data[0])] = reply.data[0]
    return bytes(content)


# ------------------------------------------------------------------------------------------------------ tools


async def test_nbdinfo_sees_a_read_only_export_for_many_connections(socket: Path) -> None:
    async with serve(Source(disk()), socket) as export:
        assert (export.socket, export.export, export.info.size) == (socket, "", len(disk()))
        found = json.loads(await tool("nbdinfo", "--json", url(socket)))
        listed = json.loads(await tool("nbdinfo", "--list", "--json", url(socket)))
    assert found["protocol"] == "newstyle-fixed"
    assert found["structured"] is True
    (seen,) = found["exports"]
    assert seen["export-size"] == len(disk())
    assert seen["is_read_only"] is True
    assert seen["can_multi_conn"] is True
    assert seen["contexts"] == ["base:allocation"]
    assert (seen["block_size_minimum"], seen["block_size_maximum"]) == (1, 32 * MiB)
    assert [one["export-name"] for one in listed["exports"]] == [""]


async def test_nbdinfo_maps_the_holes(socket: Path) -> None:
    async with serve(Source(disk(), [(4 * MiB, 7 * MiB)]), socket):
        found = json.loads(await tool("nbdinfo", "--map", "--json", url(socket)))
    assert [(e["offset"], e["length"], e["type"]) for e in found] == [
        (0, 4 * MiB, 0),
        (4 * MiB, 3 * MiB, 3),
        (7 * MiB, 3 * MiB + 512, 0),
    ]


@pytest.mark.parametrize("holes", [[], [(4 * MiB, 7 * MiB)]])
@pytest.mark.parametrize("connections", [1, 4])
async def test_nbdcopy_gets_every_byte(
    socket: Path, tmp_path: Path, connections: int, holes: list[tuple[int, int]]
) -> None:
    source = Source(disk(), holes)
    async with serve(source, socket, memory=Memory(4 * MiB)) as export:
        await tool("nbdcopy", f"--connections={connections}", url(socket), tmp_path / "copy")
        assert export.failure() is None
    assert sha256((tmp_path / "copy").read_bytes()) == sha256(disk())
    assert source.most <= 4 * MiB
    for start, stop in holes:
        assert all(offset + length <= start or offset >= stop for offset, length in source.reads)


async def test_nbdkit_is_a_client_too(socket: Path) -> None:
    async with serve(Source(disk()), socket):
        copy = 'nbdinfo --size "$uri"; nbdcopy "$uri" - | sha256sum'
        output = await tool("nbdkit", "-U", "-", "nbd", f"socket={socket}", "--run", copy)
    assert output.decode().split()[:2] == [str(len(disk())), sha256(disk())]


async def test_qemu_img_reads_a_raw_object(socket: Path, tmp_path: Path) -> None:
    original = tmp_path / "original"
    original.write_bytes(disk())
    source = Source(disk(), [(4 * MiB, 7 * MiB)])
    async with serve(source, socket):
        info = json.loads(await tool("qemu-img", "info", "--output=json", "-f", "raw", url(socket)))
        assert info["virtual-size"] == len(disk())
        mapped = json.loads(await tool("qemu-img", "map", "--output=json", "-f", "raw", url(socket)))
        assert [(e["start"], e["length"], e["zero"]) for e in mapped] == [
            (0, 4 * MiB, False),
            (4 * MiB, 3 * MiB, True),
            (7 * MiB, 3 * MiB + 512, False),
        ]
        await tool("qemu-img", "compare", "-f", "raw", "-F", "raw", url(socket), original)
        source.reads.clear()
        convert = ("qemu-img", "convert", "-W", "-m", 8, "-f", "raw", "-O", "qcow2")
        await tool(*convert, url(socket), tmp_path / "volume")
    assert source.fetched <= 1.02 * (len(disk()) - HOLE)
    await tool("qemu-img", "compare", "-f", "raw", "-F", "qcow2", original, tmp_path / "volume")


FORMATS = {
    "qcow2": ["-O", "qcow2"],
    "vpc": ["-O", "vpc", "-o", "subformat=dynamic,force_size=on"],
    "vhdx": ["-O", "vhdx"],
    "vmdk": ["-O", "vmdk"],
    "vmdk-stream": ["-O", "vmdk", "-o", "subformat=streamOptimized"],
}


@pytest.mark.parametrize("name", FORMATS)
async def test_qemu_img_reads_any_format(socket: Path, tmp_path: Path, name: str) -> None:
    driver = name.partition("-")[0]
    original, image = tmp_path / "original", tmp_path / "image"
    original.write_bytes(disk()[: 10 * MiB])
    await tool("qemu-img", "convert", "-f", "raw", *FORMATS[name], original, image)
    source = Source(image.read_bytes())
    async with serve(source, socket):
        options = f"driver={driver},file.driver=nbd,file.server.type=unix,file.server.path={socket}"
        await tool("qemu-img", "info", "--image-opts", options)
        assert source.fetched <= 1.5 * MiB, "looking at the metadata must not fetch the image"
        source.reads.clear()
        await tool("qemu-img", "convert", "-W", "-m", 8, "--image-opts", options, "-O", "raw", tmp_path / "volume")
    # Reading ahead of a small image may fetch some of it twice, as metadata and as data.
    assert source.fetched <= 1.25 * len(source.content) + MiB
    await tool("qemu-img", "compare", "-f", "raw", "-F", "raw", original, tmp_path / "volume")


async def test_an_object_on_an_http_server_becomes_a_volume(socket: Path, tmp_path: Path, nginx: NginxServer) -> None:
    original = nginx.root / "bridge.raw"
    original.write_bytes(disk())
    engine = TransferEngine()
    try:
        async with serve(http_reader(engine, nginx, "bridge.raw", None), socket) as export:
            await tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", url(socket), tmp_path / "volume")
            assert export.failure() is None
    finally:
        await engine.aclose()
    await tool("qemu-img", "compare", "-f", "raw", "-F", "qcow2", original, tmp_path / "volume")


async def test_an_object_that_changes_under_a_tool_is_named_as_the_cause(
    socket: Path, tmp_path: Path, nginx: NginxServer
) -> None:
    (nginx.root / "changing.raw").write_bytes(disk())
    engine = TransferEngine()
    try:
        async with serve(http_reader(engine, nginx, "changing.raw", '"another-etag"'), socket) as export:
            with pytest.raises(AssertionError, match=r"Input/output error"):
                await tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", url(socket), tmp_path / "volume")
            assert isinstance(export.failure(), ObjectChanged)
    finally:
        await engine.aclose()


def http_reader(engine: TransferEngine, nginx: NginxServer, path: str, version: str | None) -> HttpRangeReader:
    target = HttpTarget("127.0.0.1", nginx.port, "127.0.0.1", None, f"/{path}")

    async def where() -> HttpTarget:
        return target

    info = ObjectInfo(path, len(disk()), version=version)
    return HttpRangeReader(engine, info, where, patience=HttpPatience(attempts=1))


# --------------------------------------------------------------------------------------------------- requests


async def test_replies_are_in_pieces_with_holes_left_out(socket: Path) -> None:
    async with serve(Source(disk(), [(4 * MiB, 7 * MiB)]), socket), negotiated(socket) as client:
        reply = await client.ask(READ, 4 * MiB - 10, 3 * MiB + 20)
        assert reply.data == {4 * MiB - 10: disk()[4 * MiB - 10 : 4 * MiB], 7 * MiB: disk()[7 * MiB : 7 * MiB + 10]}
        assert reply.holes == {4 * MiB: 3 * MiB}
        status = await client.ask(BLOCK_STATUS, 4 * MiB - 10, 3 * MiB + 20)
        assert status.status == [(10, 0), (3 * MiB, 3), (10, 0)]
        status = await client.ask(BLOCK_STATUS, 4 * MiB - 10, 3 * MiB + 20, flags=8)
        assert status.status == [(10, 0)]


@pytest.mark.parametrize("structured", [True, False])
@pytest.mark.parametrize("holes", [[], [(4 * MiB, 7 * MiB)]])
async def test_every_byte_arrives_whatever_the_form_of_replies(
    socket: Path, structured: bool, holes: list[tuple[int, int]]
) -> None:
    async with serve(Source(disk(), holes), socket), negotiated(socket, structured=structured) as client:
        assert sha256(await whole(client, len(disk()), 777 * KiB)) == sha256(disk())
        assert sha256(await whole(client, len(disk()), 32 * MiB)) == sha256(disk())


async def test_requests_are_answered_in_any_order(socket: Path) -> None:
    source = Source(disk())
    async with serve(source, socket), negotiated(socket) as client:
        first = client.send(READ, 0, 10)
        assert (await client.reply())[0] == first
        source.gate.clear()
        slow = client.send(READ, 2 * MiB, 10)
        quick = client.send(READ, 20, 10)
        cookie, reply = await client.reply()
        assert (cookie, reply.data) == (quick, {20: disk()[20:30]})
        source.gate.set()
        assert (await client.reply())[0] == slow


@pytest.mark.parametrize("structured", [True, False])
async def test_what_cannot_be_done_is_refused_one_by_one(socket: Path, structured: bool) -> None:
    size = len(disk())
    async with serve(Source(disk()), socket) as export, negotiated(socket, structured=structured) as client:
        assert (await client.ask(WRITE, 0, 4 * KiB, payload=bytes(4 * KiB))).error == EPERM
        assert (await client.ask(TRIM, 0, 512)).error == EPERM
        assert (await client.ask(WRITE_ZEROES, 0, 512)).error == EPERM
        for command, offset, length, flags in [
            (READ, size, 1, 0),
            (READ, size - 1, 2, 0),
            (READ, 2**64 - 1, 2**32 - 1, 0),
            (READ, 0, 32 * MiB + 1, 0),
            (READ, 0, 10, 1 << 2),
            (BLOCK_STATUS, size, 1, 0),
            (BLOCK_STATUS, 0, 0, 0),
            (3, 0, 0, 0),
            (999, 0, 0, 0),
        ]:
            client.send(command, offset, length, flags=flags)
            assert (await client.reply())[1].error == EINVAL
        assert (await client.ask(READ, 5, 0)).error == 0
        reply = await client.ask(READ, 5, 5)
        assert list(reply.data.values()) == [disk()[5:10]]
        assert export.failure() is None, "what a client does wrong is not the store's failure"


async def test_a_client_that_says_goodbye_gets_its_answers_first(socket: Path) -> None:
    source = Source(disk())
    source.gate.clear()
    async with serve(source, socket), negotiated(socket) as client:
        asked = client.send(READ, 0, 10)
        client.send(DISC)
        await asyncio.sleep(0.01)
        source.gate.set()
        assert (await client.reply())[0] == asked
        assert await client.closed_by_server() == b""


async def test_an_empty_object_is_an_empty_export(socket: Path) -> None:
    async with serve(Source(b""), socket), negotiated(socket) as client:
        assert (await client.ask(READ, 0, 1)).error == EINVAL
        assert await tool("nbdinfo", "--size", url(socket)) == b"0\n"


# --------------------------------------------------------------------------------------------------- failures


async def test_a_failing_store_is_an_error_of_that_read_only_and_is_remembered(socket: Path) -> None:
    source = Source(disk())
    async with serve(source, socket) as export, negotiated(socket) as client:
        source.error = Unavailable("the store is away")
        reply = await client.ask(READ, 0, 10)
        assert (reply.error, reply.data) == (EIO, {})
        assert export.failure() is source.error
        first, source.error = source.error, None
        assert (await client.ask(READ, 0, 10)).data == {0: disk()[:10]}
        source.error = ObjectChanged("the object was replaced")
        assert (await client.ask(READ, 8 * MiB, 10)).error == EIO
        assert export.failure() is first, "the first failure is the cause"


async def test_a_failure_in_the_middle_of_a_read_ends_the_reply(socket: Path) -> None:
    source = Source(disk())
    source.error, source.good = Unavailable("the store is away"), MiB
    async with serve(source, socket) as export, negotiated(socket) as client:
        reply = await client.ask(READ, 0, 2 * MiB)
        assert reply.error == EIO
        assert reply.data == {0: disk()[:MiB]}
        assert export.failure() is source.error


async def test_a_simple_reply_that_was_begun_is_cut_off(socket: Path) -> None:
    source = Source(disk())
    source.error, source.good = Unavailable("the store is away"), MiB
    async with serve(source, socket) as export, negotiated(socket, structured=False) as client:
        client.send(READ, 0, 2 * MiB)
        assert len(await client.closed_by_server()) == 16 + MiB, "no byte is made up"
        assert export.failure() is source.error
    async with serve(source, socket), negotiated(socket, structured=False) as client:
        assert (await client.ask(READ, 2 * MiB, 10)).error == EIO, "nothing was sent yet: an error can be told"


async def test_a_tool_fails_when_the_store_does(socket: Path, tmp_path: Path) -> None:
    source = Source(disk())
    source.error, source.good = Unavailable("the store is away"), 5 * MiB
    async with serve(source, socket) as export:
        with pytest.raises(AssertionError, match=r"Input/output error"):
            await tool("qemu-img", "convert", "-f", "raw", "-O", "raw", url(socket), tmp_path / "volume")
        assert export.failure() is source.error


async def test_what_is_wrong_in_a_reader_is_not_hidden(socket: Path) -> None:
    class Broken(Source):
        async def read_into(self, offset: int, buffer: memoryview) -> None:
            raise ZeroDivisionError

    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with serve(Broken(disk()), socket), negotiated(socket) as client:
            client.send(READ, 0, 10)
            assert await client.closed_by_server() == b""


# ------------------------------------------------------------------------------------------------ bad clients

GARBAGE = {
    "http": b"GET / HTTP/1.1\r\n\r\n",
    "unknown flags": b"\x80\x00\x00\x03",
    "option magic": b"\x00\x00\x00\x03" + bytes(16),
    "huge option": b"\x00\x00\x00\x03IHAVEOPT" + struct.pack(">II", GO, 2**32 - 1),
    "other export, old way": b"\x00\x00\x00\x03" + option(1, b"other"),
}


@pytest.mark.parametrize("name", GARBAGE)
async def test_garbage_in_the_negotiation_closes_that_connection_only(socket: Path, name: str) -> None:
    async with serve(Source(disk()), socket), negotiated(socket) as good, connected(socket) as bad:
        bad.writer.write(GARBAGE[name])
        assert len(await bad.closed_by_server()) == 18, "the greeting and no more"
        assert (await good.ask(READ, 0, 3)).data == {0: disk()[:3]}


@pytest.mark.parametrize(
    "garbage", [bytes(28), struct.pack(">IHHQQI", 0x25609513, 0, WRITE, 1, 0, 2**32 - 1), b"\xff" * 100_000]
)
async def test_garbage_among_the_requests_closes_that_connection_only(socket: Path, garbage: bytes) -> None:
    async with serve(Source(disk()), socket), negotiated(socket) as good, negotiated(socket) as bad:
        bad.writer.write(garbage)
        assert await bad.closed_by_server() == b""
        assert (await good.ask(READ, 0, 3)).data == {0: disk()[:3]}


async def test_a_negotiation_that_never_ends_is_ended(socket: Path) -> None:
    async with serve(Source(disk()), socket, negotiation_s=0.3), connected(socket) as silent, connected(socket) as busy:

        async def chatter() -> int:
            """Bytes that the server has said in the meantime."""
            said = 0
            busy.writer.write(b"\x00\x00\x00\x03")
            with suppress(ConnectionError):  # it may end just when it has something to read
                while more := await busy.reader.read(1 << 16):
                    said += len(more)
                    busy.writer.write(option(3))
                    await asyncio.sleep(0.01)
            return said

        talking = asyncio.create_task(chatter())
        assert len(await silent.closed_by_server()) == 18
        assert await talking > 18
        async with negotiated(socket) as good:
            await asyncio.sleep(0.4)
            assert (await good.ask(READ, 0, 3)).data == {0: disk()[:3]}, "the limit is for the negotiation"


async def test_a_client_that_leaves_in_the_middle_of_everything_leaves_nothing(socket: Path) -> None:
    source = Source(disk())
    source.gate.clear()
    async with serve(source, socket):
        for _ in range(40):
            async with negotiated(socket) as client:
                for n in range(8):
                    client.send(READ, n * MiB, MiB)
                client.writer.write(b"\x25\x60")
                await client.writer.drain()
        source.gate.set()
        async with negotiated(socket) as good:
            assert sha256(await whole(good, len(disk()))) == sha256(disk())


async def test_a_client_that_does_not_read_starves_nobody(socket: Path) -> None:
    source = Source(disk())
    async with serve(source, socket, memory=Memory(4 * MiB)), negotiated(socket) as stuck, negotiated(socket) as good:
        for n in range(50):
            stuck.send(READ, n % 10 * MiB, MiB)
        stuck.writer.transport.pause_reading()  # type: ignore[attr-defined]  # selector transports have it
        await stuck.writer.drain()
        await asyncio.sleep(0.05)
        assert sha256(await whole(good, len(disk()))) == sha256(disk())
    assert source.most <= 4 * MiB


async def test_exports_share_memory(socket: Path) -> None:
    memory = Memory(16 * MiB)
    sources = [Source(disk(n)) for n in range(3)]
    paths = [socket.with_name(str(n)) for n in range(3)]
    async with serve(sources[0], paths[0], memory=memory), negotiated(paths[0]) as first:
        assert memory.share == 16 * MiB
        assert sha256(await whole(first, len(disk()))) == sha256(disk(0))
        async with serve(sources[1], paths[1], memory=memory), serve(sources[2], paths[2], memory=memory):
            assert memory.share == 16 * MiB // 3
            async with negotiated(paths[1]) as second, negotiated(paths[2]) as third:
                contents = await asyncio.gather(*(whole(client, len(disk())) for client in (first, second, third)))
            assert [sha256(content) for content in contents] == [sha256(disk(n)) for n in range(3)]
        assert memory.share == 16 * MiB


async def test_more_clients_than_are_served_at_once_wait_for_their_turn(socket: Path) -> None:
    async def one() -> str:
        async with negotiated(socket) as client:
            digest = sha256(await whole(client, len(disk())))
            client.send(DISC)
            return digest

    async with serve(Source(disk()), socket, memory=Memory(8 * MiB)):
        assert set(await asyncio.gather(*(one() for _ in range(24)))) == {sha256(disk())}


# --------------------------------------------------------------------------------------------- socket and end


async def test_only_our_user_can_come_in(socket: Path) -> None:
    async with serve(Source(disk()), socket):
        assert stat.S_IMODE(socket.stat().st_mode) == 0o600
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700


async def test_an_open_directory_is_refused(socket: Path) -> None:
    socket.parent.mkdir(mode=0o755)
    with pytest.raises(PolicyRefused, match="0700"):
        async with serve(Source(disk()), socket):
            pass


async def test_a_path_that_is_taken_stays_with_its_owner(socket: Path) -> None:
    async with serve(Source(disk()), socket):
        with pytest.raises(AlreadyExists):
            async with serve(Source(disk(2)), socket):
                pass
        assert await tool("nbdinfo", "--size", url(socket)) == b"%d\n" % len(disk())


async def test_what_cannot_be_exported_is_said_before_anything_is_made(socket: Path) -> None:
    with pytest.raises(InvalidReference, match="107"):
        async with serve(Source(disk()), socket.with_name("x" * 100)):
            pass
    unsized = Source(disk())
    unsized.info = ObjectInfo("object", None)
    with pytest.raises(StoreUnsupported, match="size"):
        async with serve(unsized, socket):
            pass
    assert not socket.parent.exists()


async def test_a_named_export_answers_to_its_name_only(socket: Path) -> None:
    async with serve(Source(disk()), socket, export="disk-1"):
        assert await tool("nbdinfo", "--size", f"nbd+unix:///disk-1?socket={socket}") == b"%d\n" % len(disk())
        with pytest.raises(AssertionError):
            await tool("nbdinfo", "--size", url(socket))


async def test_the_end_of_the_context_closes_connections_and_stops_reads(socket: Path) -> None:
    source = Source(disk())
    source.gate.clear()
    async with connected_after(source, socket) as client:
        assert await client.closed_by_server() == b""
    assert source.under_way == 0
    with pytest.raises((FileNotFoundError, ConnectionRefusedError)):
        await asyncio.open_unix_connection(socket)


class connected_after:
    """A client with reads under way, seen from after the end of the export's context."""

    def __init__(self, source: Source, socket: Path) -> None:
        self._source, self._socket = source, socket

    async def __aenter__(self) -> NbdClient:
        async with serve(self._source, self._socket):
            self._connection = negotiated(self._socket)
            client = await self._connection.__aenter__()
            for n in range(8):
                client.send(READ, n * MiB, MiB)
            while not self._source.under_way:
                await asyncio.sleep(0.001)
        return client

    async def __aexit__(self, *_: object) -> None:
        await self._connection.__aexit__(None, None, None)


async def test_cancelling_leaves_nothing(socket: Path) -> None:
    source = Source(disk())
    source.gate.clear()
    ready = asyncio.Event()

    async def work() -> None:
        async with serve(source, socket), negotiated(socket) as client:
            client.send(READ, 0, MiB)
            while not source.under_way:
                await asyncio.sleep(0.001)
            ready.set()
            await client.reply()

    task = asyncio.create_task(work())
    await ready.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert source.under_way == 0


async def test_an_error_of_whoever_uses_the_export_comes_out_as_it_is(socket: Path) -> None:
    with pytest.raises(LookupError, match="mine"):
        async with serve(Source(disk()), socket), negotiated(socket):
            raise LookupError("mine")
