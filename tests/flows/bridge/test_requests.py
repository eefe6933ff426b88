"""The bridge request by request, on stores that fail, and from its socket to its end."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest

from stores.bridge import serve
from stores.contract import KiB, MiB, ObjectInfo
from stores.errors import AlreadyExists, InvalidReference, ObjectChanged, PolicyRefused, StoreUnsupported, Unavailable
from tests.doubles.nbd_client import BLOCK_STATUS, DISC, READ, TRIM, WRITE, WRITE_ZEROES, NbdClient, negotiated
from tests.flows.bridge.place import EINVAL, EIO, EPERM, Source, disk, sha256, tool, url, whole

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
